"""Copies of a page are known again, other pages of its kind are not; and no copy gets into another split."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from PIL import Image

from tests.support.page_sources import drawn
from trainer.cli import main
from trainer.data.likeness import LikenessRegister, PageLikeness, distance, likeness_of, look_of
from trainer.data.prepare.manifest import load_manifest
from trainer.data.render.faces import FaceSet
from trainer.data.render.pages import PageStyle, draw_pages

WORDS = "river garden window letter market autumn silver engine harbour ticket meadow doctor signal bridge"


def text_of(seed, count=60, changed=0):
    rng = Random(seed)
    known = WORDS.split()
    words = [rng.choice(known) for _ in range(count)]
    for place in Random(seed).sample(range(count), changed):
        words[place] = "other"
    return " ".join(words)


def page_of(text, size=24):
    return next(iter(draw_pages(text, FaceSet(()), PageStyle(640, 640, 40, (size, size)), Random(0)))).image


def likeness(text, image=None):
    return likeness_of(text, [look_of(image or page_of(text))])


@pytest.mark.parametrize("seed", range(4))
def test_a_page_that_is_typed_or_scanned_again_is_known(seed):
    text = text_of(seed)
    page = likeness(text)
    assert page.is_like(likeness(text, page_of(text, 20)))
    assert page.is_like(likeness(text.upper().replace(" ", "\n") + "."))
    small = page_of(text).resize((500, 500), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(small) + np.random.default_rng(seed).normal(0, 12, (500, 500)), 0, 255)
    scanned = Image.fromarray(noisy.astype(np.uint8))
    assert distance(look_of(page_of(text)), look_of(scanned)) <= 20
    assert page.is_like(likeness(text_of(seed, changed=1), scanned))
    assert PageLikeness.from_text(page.as_text()).is_like(page)


@pytest.mark.parametrize("seed", range(4))
def test_another_page_of_its_kind_is_not(seed):
    text = text_of(seed)
    page = likeness(text)
    assert not page.is_like(likeness(text_of(seed + 10)))
    assert not page.is_like(likeness(text_of(seed, changed=12)))
    # Invoices of one series.
    image = page_of(text)
    assert not likeness(f"{text} number 4711", image).is_like(likeness(f"{text} number 4712", image))
    # Short texts recur.
    assert not likeness("Total", drawn("Total", (200, 40))).is_like(likeness("Total", page_of("Total")))
    with pytest.raises(ValueError, match="not the likeness"):
        PageLikeness.from_text("3.00000000.11.22")


def test_a_register_finds_what_it_has_seen():
    register = LikenessRegister()
    for seed in range(30):
        register.add(likeness_of(text_of(seed), ()), "train" if seed % 2 else "test")
    for seed in range(30):
        other = likeness_of(text_of(seed) + "!", ())
        assert register.find(other) == ("train" if seed % 2 else "test")
        assert register.find(other, but="train") == (None if seed % 2 else "test")
    assert register.find(likeness_of(text_of(99), ())) is None


@pytest.mark.parametrize("step", [1000, 4])
def test_copies_of_training_pages_are_not_held_out(tmp_path, capsys, step):
    lines = []
    for seed in range(10):
        page_of(text_of(seed)).save(tmp_path / f"{seed}.png")
        lines.append({"image": f"{seed}.png", "text": text_of(seed), "split": "train"})
    for seed in (0, 1, 20, 21):
        page_of(text_of(seed), 22).save(tmp_path / f"copy-{seed}.png")
        lines.append({"image": f"copy-{seed}.png", "text": f"{text_of(seed)}.", "split": "test"})
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--rows-per-file", str(step), "--out", str(tmp_path / "set")]
    assert main(["prepare", str(tmp_path), *words]) == 0, capsys.readouterr().err
    named = [json.loads(line) for line in (tmp_path / "set" / "broken-rows.jsonl").read_text().splitlines()]
    assert [(row["number"], row["code"]) for row in named] == [
        (11, "near_duplicate_across_splits"), (12, "near_duplicate_across_splits"),
    ]  # fmt: skip
    manifest = load_manifest(tmp_path / "set")
    assert {name: split["num_samples"] for name, split in manifest["splits"].items()} == {"train": 10, "test": 2}
    assert manifest["num_duplicates"] == 2
