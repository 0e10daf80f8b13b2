"""`python -m trainer benchmark` on the tiny model: what it runs, what it reports, and what it says where it cannot."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.training import write_checkpoint, write_words
from trainer.benchmark import Case, measure
from trainer.cli import main
from trainer.commands import benchmark


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 24)
    return folder


def case(place, **changes) -> Case:
    values = {"model": str(place / "model"), "device": "cpu", "batch_size": 2, "steps": 3, "text_tokens": 20}
    return Case(**{**values, **changes})


def test_ways_train_the_same_and_only_one_encodes_again_and_again(place, tmp_path, monkeypatch):
    from trainer.training import setup as assembly

    encoded = []
    encode = assembly.encode_samples
    monkeypatch.setattr(assembly, "encode_samples", lambda *args: encoded.append(len(args[3])) or encode(*args))
    rows = {}
    for way, expected in (("standard", 7 * 2), ("cached", 2 * 2)):
        (tmp_path / way).mkdir()
        rows[way] = measure(way, case(place), tmp_path / way)
        assert sum(encoded) == expected, way
        encoded.clear()
    standard, cached = rows["standard"], rows["cached"]
    assert standard["first_loss"] == pytest.approx(cached["first_loss"], rel=1e-4)
    assert standard["last_loss"] == pytest.approx(cached["last_loss"], rel=1e-3)
    assert cached["mode"] == "cached"
    assert cached["model"] == "model"
    assert cached["peak_gib"] is None


def test_texts_are_as_long_as_asked_for(place, tmp_path):
    from trainer.benchmark import drawn_pages

    class Reader:
        def __init__(self):
            self.texts = []

        def encode(self, text):
            return list(range(len(text) // 3))

        def take(self, sample, into):
            self.texts.append(sample.text)

    reader = Reader()
    drawn_pages(tmp_path / "pages", 2, 100)(reader)
    assert len(set(reader.texts)) == 2
    assert all(90 <= len(reader.encode(text)) <= 100 for text in reader.texts)


def test_modes_run_apart_and_the_table_compares_them(place, tmp_path, monkeypatch, capsys):
    asked = []

    def measured(mode, case, limit_s):
        asked.append((mode, case.text_tokens, case.gradient_checkpointing, limit_s))
        if mode == "unsloth":
            return None, "Unsloth is not installed"
        row = {"mode": mode, "step_ms": 400.0 if mode == "standard" else 100.0, "peak_gib": 20.0}
        return row | ({"peak_gib": 5.0} if mode == "cached" else {}), ""

    monkeypatch.setattr(benchmark, "_measured", measured)
    words = "benchmark --device cpu --modes standard cached unsloth --text-tokens 77 --limit-s 9"
    assert main([*words.split(), "--json", str(tmp_path / "rows.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["standard", "400.0", "1.00", "x", "20.00", "100", "%"]
    assert lines[2].split() == ["cached", "100.0", "4.00", "x", "5.00", "25", "%"]
    assert lines[3] == "unsloth: Unsloth is not installed"
    assert asked[0] == ("standard", 77, True, 9)
    assert [json.loads(line)["mode"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        "standard", "cached",
    ]  # fmt: skip
    monkeypatch.setattr(benchmark, "_measured", lambda *_: (None, "no memory"))
    assert main(["benchmark", "--device", "cpu"]) == 2
    assert "standard: no memory" in capsys.readouterr().err


def test_what_a_mode_cannot_do_is_told_in_its_own_words(place, monkeypatch):
    answers = iter([
        subprocess.CompletedProcess([], 2, "", "a warning\nerror: Unsloth only works on CUDA devices\n"),
        subprocess.CompletedProcess([], -9, "", ""),
        subprocess.TimeoutExpired([], 5),
    ])  # fmt: skip

    def run(command, **_):
        assert "--child" in command
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    told = [benchmark._measured("unsloth", case(place), 5) for _ in range(3)]
    assert told == [
        (None, "Unsloth only works on CUDA devices"), (None, "status -9"),
        (None, "not done after 5 s; give more with --limit-s"),
    ]  # fmt: skip
