"""The training benchmark's ways on a CPU in miniature: all but Unsloth's compute the same step."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import training
from shared.deepseek_ocr import loss

CPU = torch.device("cpu")
OTHERS = ("plain-cached", "cached", "cached-kept", "cached-chunked", "graphed", "graphed-chunked")


@pytest.fixture(scope="module", params=["ocr2", "v1"])
def checkpoint(tmp_path_factory, request):
    return training.write_checkpoint(tmp_path_factory.mktemp("random") / "tiny", tiny=True, model=request.param)


@pytest.fixture(scope="module")
def updates(checkpoint):
    """By way: the loss of a first step and what it does to the adapter."""
    found = {}
    for mode in ("plain", *OTHERS):
        trained = training.load(mode, str(checkpoint), CPU, 128)
        first_loss = training.make_step(trained, 2, 24)()
        weights = {name: each.detach() for name, each in trained.model.named_parameters() if each.requires_grad}
        found[mode] = (float(first_loss), weights)
    return found


@pytest.mark.parametrize("mode", OTHERS)
def test_every_way_trains_the_same_step(updates, mode, monkeypatch):
    plain_loss, weights = updates["plain"]
    other_loss, other_weights = updates[mode]
    assert other_loss == pytest.approx(plain_loss, rel=1e-5)
    assert other_weights.keys() == weights.keys()
    assert len(weights) == 2 * 2 * 4, "two layers, two matrices, four projections"
    for name, each in weights.items():
        # Adam's first step is the gradient's sign times the rate: it tells any other gradient.
        assert torch.allclose(each, other_weights[name], atol=1e-6), name


def test_the_loss_in_pieces_is_the_loss(checkpoint, monkeypatch):
    monkeypatch.setattr(loss, "PIECE_LOGITS", 2048 * 2)
    trained = training.load("cached-chunked", str(checkpoint), CPU, 128)
    whole = training.load("cached", str(checkpoint), CPU, 128)
    assert float(training.make_step(trained, 2, 24)()) == pytest.approx(
        float(training.make_step(whole, 2, 24)()), rel=1e-6
    )


def test_the_search_ends_between_what_works_and_what_does_not(checkpoint, monkeypatch):
    tried = []

    def fits(trained, text_tokens):
        tried.append(text_tokens)
        return text_tokens <= 23_456

    monkeypatch.setattr(training, "_fits", fits)
    trained = training.Trained("cached", None, CPU, 257)
    found = training.longest_context(trained, 131_072, 60.0)
    assert found["longest_text_tokens"] <= 23_456 < found["too_long_text_tokens"]
    assert found["longest_text_tokens"] > 0.93 * 23_456
    assert tried[:3] == [1024, 2048, 4096]
    assert training.longest_context(trained, 4096, 60.0)["longest_text_tokens"] == 4096
    assert training.longest_context(trained, 131_072, 0.0)["longest_text_tokens"] == 0


def test_the_program_prints_a_line_for_each_case_and_ends_what_takes_too_long(
    tmp_path, checkpoint, monkeypatch, capsys
):
    # A checkpoint that is there says itself what it is.
    words = ["--tiny", "--device", "cpu", "--checkpoint", str(checkpoint), "--text-tokens", "8", "--batch", "1"]
    words += ["--limit-s", "400"]

    def program(*more):
        monkeypatch.setattr(sys, "argv", [training.__file__, *words, *more])
        return training.main()

    assert program("--modes", "cached", "--out", str(tmp_path / "rows.jsonl")) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    assert (row["mode"], row["batch"], row["text_tokens"]) == ("cached", 1, 8)
    assert (row["model"], row["image_tokens"]) in {("ocr2", 257), ("v1", 7)}
    assert row["step_ms"] > 0
    assert row["versions"]["peft"]
    assert row["commit"]
    assert str(tmp_path) not in json.dumps(row)
    assert program("--modes", "plain", "--limit-s", "0.3") == 1
    assert "plain: ended after" in capsys.readouterr().out
