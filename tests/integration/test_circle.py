"""The program that closes the circle, in miniature on a CPU: trained while a service is under load, served by it."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import circle
from benchmarks.online import Sent
from tests.support.programs import ROOT

pytestmark = pytest.mark.integration
SMALL = ("--tiny", "--device", "cpu", "--steps", "2", "--tokens", "48", "--streams", "3", "--rank", "4",
         "--setting", "CPU_THREADS=1", "--setting", "IMAGE_WORKERS=1")  # fmt: skip


def run(monkeypatch, capsys, *words: str) -> tuple[int, list[dict]]:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "circle.py"), *SMALL, *words])
    status = circle.main()
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check(row: dict) -> None:
    way = row["ways"]["lora"]
    assert row["faults"] == []
    # In float32 the served probabilities are those of the trained model.
    assert way["logarithms"]["trained"]["max_difference"] < 1e-4
    assert way["logarithms"]["trained"]["same_tokens"] == way["logarithms"]["trained"]["tokens"] > 0
    assert row["base"]["logarithms"]["max_difference"] < 1e-4
    assert set(way["open_meanwhile"]) == {f"{row['model']}-random", "other-a", "other-b"}
    assert 0 < way["rename_to_first_text_s"] <= way["rename_to_answer_s"]
    assert way["last_loss"] < way["first_loss"]


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_the_circle_closes_for_deepseek_ocr(monkeypatch, capsys, tmp_path):
    status, (row,) = run(monkeypatch, capsys, "--models", "deepseek-ocr", "--out", str(tmp_path / "rows.jsonl"))
    assert status == 0
    check(row)
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    assert "/" not in row["command"].replace("benchmarks/", "")


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_the_circle_closes_for_the_others(monkeypatch, capsys):
    status, rows = run(monkeypatch, capsys, "--models", "deepseek-ocr-2", "unlimited-ocr")
    assert status == 0
    for row in rows:
        check(row)


def test_requests_that_were_open_at_a_moment_are_counted():
    moments = {"base": [(0.0, 3.0), (2.5, 3.0)], "other": [(0.5, 1.9), (0.9, 2.0)]}
    asked = [circle.Asked(name, *pair, Sent(0.0)) for name, pairs in moments.items() for pair in pairs]
    traffic = circle.Traffic(client=None, load=None, asked=asked)
    assert traffic.open_at(1.95) == {"base": 1, "other": 1}
    assert traffic.rate(0.0, 2.0) == 1.0
