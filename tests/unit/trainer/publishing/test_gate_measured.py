"""`publish --data`: base and adapter are measured on the way, and only what is better goes out."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from shared.contract.manifest import parse_manifest
from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.evaluation import write_set
from tests.support.lora import random_adapter, write_files
from tests.support.page_sources import drawn, encoded
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.cli import main
from trainer.data.sources.images import check_image
from trainer.evaluation.results import load_result
from trainer.evaluation.seen import SEEN_FILE, seen_line


@pytest.fixture
def flags(tmp_path):
    """Flags that measure an adapter whose pages' truths are what the base model says, or the adapter."""
    base = tmp_path / "tiny"
    save_checkpoint(tiny_model(), base)
    (base / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()._definition), encoding="utf-8")
    adapter = write_files(tmp_path / "elsewhere", random_adapter(tiny_model(), seed=1))
    (tmp_path / "volume").mkdir()
    pages = write_set(tmp_path / "held-out", [("a.png", "line", "ab"), ("b.png", "line", "cd")])
    asked = f"--data {pages} --device cpu --max-new-tokens 8"

    def make(whose: int) -> list[str]:
        words = f"evaluate {asked} --model {base} --adapter {adapter} --pages {tmp_path}/pages.jsonl"
        assert main(words.split()) == 0
        for line in (tmp_path / "pages.jsonl").read_text().splitlines():
            page = json.loads(line)
            text = page["readings"][whose]["text"]
            (pages / page["file"]).with_suffix(".txt").write_text(text, encoding="utf-8")
        place = f"--volume {tmp_path}/volume --name letters --json {tmp_path}/r.json --min-pages 2"
        return f"publish --from {adapter} --base {base} {asked} {place}".split()

    return make


def test_an_adapter_made_elsewhere_is_measured_and_published(tmp_path, flags, capsys):
    assert main(flags(whose=0)) == 0
    assert "published letters@1" in capsys.readouterr().out
    manifest = parse_manifest((tmp_path / "volume" / "letters" / "1" / "manifest.json").read_bytes())
    result = load_result(tmp_path / "r.json")
    assert manifest.evaluation.adapter.cer == 0.0
    assert manifest.evaluation.base.cer == pytest.approx(result.base.tiers["line"].cer, abs=1e-5)
    assert manifest.evaluation.base.cer > 0.3
    assert manifest.evaluation.sets[0].sha256 == result.sets[0].sha256
    assert result.adapter.details["adapter"] == manifest.files["adapter_model.safetensors"].sha256


def test_a_run_says_which_base_its_adapter_is_for(tmp_path, flags):
    words = flags(whose=0)
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "elsewhere").rename(run / "best")
    record = {"options": {"model": str(tmp_path / "tiny")}, "data": {"fingerprint": "ab" * 32, "num_samples": 3}}
    (run / "run.json").write_text(json.dumps(record))
    place = words.index("--base")
    words = ["publish", "--adapter", str(run), *words[3:place], *words[place + 2 :]]
    assert main(words) == 0
    manifest = parse_manifest((tmp_path / "volume" / "letters" / "1" / "manifest.json").read_bytes())
    assert manifest.base.model_id == "tiny"
    pages = tmp_path / "held-out"
    asked = f"evaluate --adapter {run} --data {pages} --device cpu --max-new-tokens 8 --json {tmp_path}/e.json"
    assert main(asked.split()) == 0
    assert load_result(tmp_path / "e.json").base.details == load_result(tmp_path / "r.json").base.details


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_a_volume_that_is_none_is_told_before_pages_are_read(tmp_path, flags, capsys, what):
    words = flags(whose=0)
    place = tmp_path / "elsewhere.txt"
    if what == "a file":
        place.write_text("no folder")
    capsys.readouterr()
    assert main([str(place) if word == f"{tmp_path}/volume" else word for word in words]) == 2
    assert f"volume_unavailable: the volume {place}" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("copied", [False, True])
def test_pages_that_were_trained_on_prove_nothing(tmp_path, flags, capsys, copied):
    words = flags(whose=0)
    lines = []
    for name in ("a", "b"):
        image = Image.open(tmp_path / "held-out" / f"{name}.png")
        if copied:  # lossy, so that no pixel is the same
            image = Image.open(io.BytesIO(encoded(image.convert("RGB"), "JPEG", quality=70)))
        text = (tmp_path / "held-out" / f"{name}.txt").read_text()
        lines.append(seen_line([check_image(encoded(image))], text))
    (tmp_path / "elsewhere" / SEEN_FILE).write_text("\n".join(lines))
    capsys.readouterr()
    assert main(words) == 2
    assert "2 of 2 pages were trained on, or are copies" in capsys.readouterr().err
    assert not (tmp_path / "volume" / "letters").exists()
    assert main([*words, "--force", "a trial"]) == 0
    manifest = parse_manifest((tmp_path / "volume" / "letters" / "1" / "manifest.json").read_bytes())
    assert (manifest.forced, manifest.evaluation.sets[0].seen_pages) == ("a trial", 2)


def test_pages_that_were_not_trained_on_are_counted_as_none(tmp_path, flags):
    words = flags(whose=0)
    lines = [seen_line([check_image(encoded(drawn("q", (200, 60))))], "another page")]
    (tmp_path / "elsewhere" / SEEN_FILE).write_text("\n".join(lines))
    assert main(words) == 0
    manifest = parse_manifest((tmp_path / "volume" / "letters" / "1" / "manifest.json").read_bytes())
    assert manifest.evaluation.sets[0].seen_pages == 0
    assert manifest.evaluation.cer_change[1] < 0


def test_one_that_reads_worse_stays_out_unless_forced(tmp_path, flags, capsys):
    words = flags(whose=1)
    capsys.readouterr()
    assert main(words) == 2
    assert "not_better" in capsys.readouterr().err
    assert not (tmp_path / "volume" / "letters").exists()
    assert main([*words, "--force", "a trial"]) == 0
    manifest = parse_manifest((tmp_path / "volume" / "letters" / "1" / "manifest.json").read_bytes())
    assert (manifest.forced, manifest.evaluation.base.cer) == ("a trial", 0.0)
