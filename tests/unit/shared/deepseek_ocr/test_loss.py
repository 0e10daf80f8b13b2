"""The loss in pieces is the loss: value and gradients, of both models, however many pieces there are."""

from __future__ import annotations

import pytest
import torch

from shared.deepseek_ocr import loss
from shared.deepseek_ocr.loss import IGNORED_LABEL, loss_in_pieces, next_token_loss
from tests.support.tiny_model import tiny_model


def inputs(model, size=32, vocab=280):
    torch.manual_seed(1)
    embeds = torch.randn(2, 21, size, requires_grad=True)
    labels = torch.randint(4, vocab, (2, 12))
    labels[0, :5] = IGNORED_LABEL
    return embeds, labels


@pytest.mark.parametrize("num_items", [None, 40])
@pytest.mark.parametrize("piece_logits", [1, 280 * 7, 2**27])
def test_pieces_give_the_loss_and_its_gradient(monkeypatch, num_items, piece_logits):
    monkeypatch.setattr(loss, "PIECE_LOGITS", piece_logits)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 280)
    hidden = torch.randn(3, 9, 16, requires_grad=True)
    labels = torch.randint(0, 280, (3, 9))
    labels[1, :4] = IGNORED_LABEL
    whole = next_token_loss(head(hidden), labels, num_items)
    pieces = loss_in_pieces(hidden, head, 280, labels, num_items)
    assert pieces.item() == pytest.approx(whole.item(), rel=1e-6)
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    found = torch.autograd.grad(pieces, [hidden, head.weight])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))


def test_no_more_logits_than_a_piece_are_there_at_once(monkeypatch):
    monkeypatch.setattr(loss, "PIECE_LOGITS", 280 * 4)
    sizes = []

    def head(hidden):
        sizes.append(len(hidden))
        return hidden @ torch.ones(16, 280)

    loss_in_pieces(torch.randn(2, 9, 16, requires_grad=True), head, 280, torch.ones(2, 9, dtype=torch.long)).backward()
    assert max(sizes) == 4
    assert sum(sizes) == 2 * 16, "once for the loss, once for its gradient"


@pytest.mark.parametrize("training", [False, True])
def test_v1_gives_the_same_loss_alone(monkeypatch, training):
    monkeypatch.setattr(loss, "PIECE_LOGITS", 280 * 5)
    model = tiny_model().train(training)
    embeds, labels = inputs(model)
    given = {"inputs_embeds": embeds, "labels": labels, "logits_to_keep": 12, "use_cache": False}
    whole, alone = model(**given), model(**given, loss_alone=True)
    assert alone.loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)
    assert alone.logits is None
    (expected,) = torch.autograd.grad(whole.loss, [embeds])
    (found,) = torch.autograd.grad(alone.loss, [embeds])
    assert torch.allclose(found, expected, atol=1e-6)
    without_labels = model(inputs_embeds=embeds, loss_alone=True)
    assert without_labels.logits.shape[:2] == (2, 21)


def test_ocr2_gives_the_same_loss_alone(monkeypatch, tmp_path):
    from benchmarks.random_model import write_random_ocr2
    from shared.deepseek_ocr.ocr2 import DeepseekOcr2Reader

    monkeypatch.setattr(loss, "PIECE_LOGITS", 512 * 5)
    write_random_ocr2(tmp_path / "tiny", tiny=True)
    model = DeepseekOcr2Reader.from_pretrained(tmp_path / "tiny")
    embeds, labels = inputs(model, vocab=500)
    for num_items in (None, 30):
        given = {"inputs_embeds": embeds, "labels": labels, "logits_to_keep": 12, "num_items_in_batch": num_items}
        whole, alone = model(**given), model(**given, loss_alone=True)
        assert alone.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)
        (expected,) = torch.autograd.grad(whole.loss, [embeds])
        (found,) = torch.autograd.grad(alone.loss, [embeds])
        assert torch.allclose(found, expected, atol=1e-5)
