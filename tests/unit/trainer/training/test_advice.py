"""Advice in errors, followed word by word: it has to lead out."""

from __future__ import annotations

import re

import pytest

from tests.support.training import small_options, write_checkpoint, write_words
from trainer.cli import main


@pytest.fixture
def place(tmp_path):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 8)
    return tmp_path


def run(place, *words, **changes):
    options = small_options(place, max_steps=1, eval_steps=1, **changes)
    flags = [word for name, value in options.items() if name != "use_tensorboard"
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    return main(["train", *flags, "--no-use-tensorboard", "--device", "cpu", *words])


def advice(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_empty_file_of_options(place, capsys):
    (place / "empty.yaml").write_text("")
    assert run(place, "--config", str(place / "empty.yaml")) == 2
    (line,) = re.findall(r"`([a-z-]+: \d+)`", advice(capsys))
    (place / "empty.yaml").write_text(line + "\n")
    assert run(place, "--config", str(place / "empty.yaml")) == 0


def test_a_file_of_options_that_is_not_there(place, capsys):
    assert run(place, "--config", str(place / "none.yaml")) == 2
    said = advice(capsys)
    assert "none.yaml cannot be read" in said
    assert "[option_invalid]" in said
    assert "leave it out" in said
    assert run(place) == 0


def test_samples_that_are_all_too_long(place, capsys):
    assert run(place, max_length=12) == 2
    said = advice(capsys)
    assert "[no_samples]" in said
    (length,) = re.findall(r"--max-length (\d+)", said)
    assert run(place, max_length=int(length) - 1) == 2
    capsys.readouterr()
    assert run(place, max_length=int(length)) == 0


def test_one_row_that_content_holds_out(place, capsys):
    (place / "one").mkdir()
    for name in ("w002.png", "w002.txt"):
        (place / "one" / name).write_bytes((place / "words" / "train" / name).read_bytes())
    assert run(place, "--validation-share", "0.99", dataset_name=place / "one") == 2
    said = advice(capsys)
    assert "add --validation-share 0 to train on them" in said
    assert run(place, "--validation-share", "0", dataset_name=place / "one") == 0


def test_a_source_whose_splits_have_no_train(place, capsys):
    (place / "words" / "train").rename(place / "words" / "test")
    assert run(place) == 2
    assert "nothing in `train`" in advice(capsys)
    (place / "words" / "test").rename(place / "words" / "train")
    assert run(place) == 0


def test_a_split_that_is_not_there(place, capsys):
    words = ["evaluate", "--model", str(place / "model"), "--device", "cpu", "--max-new-tokens", "2"]
    source = write_words(place / "more", 24) / "train"
    assert main([*words, "--data", str(source), "--split", "test"]) == 2
    said = advice(capsys)
    assert "leave --split out" in said
    assert main([*words, "--data", str(source), "--limit", "2"]) == 0
    (share,) = re.findall(r"--test-share [0-9.]+[0-9]", said)
    prepare = ["prepare", str(source), "--out", str(place / "set"), "--validation-share", "0"]
    # Of so few pages none may fall into a fifth, and then that has advice of its own.
    assert main([*prepare, *share.split()]) == 2
    assert "larger shares" in advice(capsys)
    assert main([*prepare, "--test-share", "0.4"]) == 0
    assert main([*words, "--data", str(place / "set"), "--split", "test"]) == 0
