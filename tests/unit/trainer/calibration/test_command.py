from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from shared.contract.calibration import read_calibration
from shared.contract.confidence import score_tokens
from trainer.cli import main
from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading


class Guesser:
    """Reads what is there, and a word wrong as often as its probability says, halved."""

    name = "guesser"
    details: Mapping[str, str] = {"weights": "ab" * 32}

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        for index, sample in enumerate(samples):
            rng = random.Random(sample.truth)
            words, chances = [], []
            for word in sample.truth.split():
                chance = rng.random()
                chances.append(math.log(chance))
                words.append(word if rng.random() < chance / 2 else word[::-1])
            tokens = score_tokens((f" {word}".encode() for word in words), chances)
            yield index, Reading("".join(f" {word}" for word in words), 0.0, token_scores=tokens)


def drawn_set(folder: Path, seed: int, num_pages: int = 60) -> Path:
    rng = random.Random(seed)
    folder.mkdir()
    rows = []
    for number in range(num_pages):
        (folder / f"{number}.png").write_bytes(b"")
        words = [f"{rng.randint(0, 9)}{rng.randint(0, 9)}x" for _ in range(30)]
        (folder / f"{number}.txt").write_text(" ".join(words))
        rows.append(json.dumps({"image": f"{number}.png", "text": f"{number}.txt", "tier": "line"}))
    (folder / "index.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.reading.loading.load_model_reader", lambda *_: Guesser())


def test_calibration_is_written_next_to_the_weights_and_measured_on_other_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tmp_path / "model"
    model.mkdir()
    fitted, other = drawn_set(tmp_path / "fitted", 1), drawn_set(tmp_path / "other", 2)
    report = tmp_path / "docs" / "calibration.md"
    command = ["calibrate", "--model", model, "--data", fitted, "--check", other, "--report", report]
    assert main([str(each) for each in command]) == 0
    maps = read_calibration(model)
    assert maps is not None
    assert maps.words.share(math.log(0.5), -1.0) == pytest.approx(0.25, abs=0.1)
    record = json.loads((model / "calibration.json").read_text())
    assert record["weights"] == "ab" * 32
    assert [(each["name"], each["fitted"], each["pages"]) for each in record["sets"]] == [
        ("fitted", True, 60), ("other", False, 60),
    ]  # fmt: skip
    assert 0 < record["sets"][1]["ece_words"] < 0.05
    assert "| other | 60 | 1800 |" in report.read_text()
    assert report.with_suffix(".svg").read_text().startswith("<svg")
    assert "other: ECE of words 0.0" in capsys.readouterr().out


def test_what_cannot_be_calibrated_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = drawn_set(tmp_path / "few", 1, num_pages=1)
    model = tmp_path / "model"
    model.mkdir()
    assert main(["calibrate", "--model", str(model), "--data", str(few)]) == 2
    assert "too few to calibrate" in capsys.readouterr().err
    assert main(["calibrate", "--model", str(model)]) == 2
    assert main(["calibrate", "--model", "owner/name", "--data", str(few)]) == 2
    assert "give a folder" in capsys.readouterr().err
    assert not list(model.iterdir())
