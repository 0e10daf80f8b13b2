"""BERTScore with a model in miniature: the matching's arithmetic, long texts, and its way into a record."""

from __future__ import annotations

import io

import pytest
import torch

from tests.support.evaluation import TableReader, write_set
from trainer.cli import main
from trainer.evaluation import bert
from trainer.evaluation.bert import BertScorer, with_bert_scores
from trainer.evaluation.run import evaluate
from trainer.evaluation.samples import load_set
from trainer.evaluation.table import text_table
from trainer.reading.protocol import ReaderError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert") / "tiny-bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "down", "page"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**size, intermediate_size=16, max_position_embeddings=32)).save_pretrained(folder)
    return str(folder)


def test_the_score_is_the_f1_of_the_best_matches(model):
    scorer = BertScorer(model)
    truth, reading = scorer._embedded("the cat sat down"), scorer._embedded("the dog sat")
    assert (len(truth), len(reading)) == (4, 3)
    precision = sum(max(float(one @ other) for other in truth) for one in reading) / 3
    recall = sum(max(float(one @ other) for one in reading) for other in truth) / 4
    expected = 2 * precision * recall / (precision + recall)
    assert scorer.f1("the cat sat down", "the dog sat") == pytest.approx(expected, abs=1e-5)
    assert scorer.f1("the cat", "the  cat") == pytest.approx(1.0, abs=1e-5)
    assert scorer.f1("", "") == 1.0
    assert scorer.f1("the", "") == 0.0


def test_long_texts_are_embedded_in_pieces(model, monkeypatch):
    monkeypatch.setattr(bert, "PIECE_TOKENS", 6)
    monkeypatch.setattr(bert, "PIECES_AT_ONCE", 2)
    scorer = BertScorer(model)
    text = " ".join(["the cat sat down", "the dog", "page"] * 5)
    vectors = scorer._embedded(text)
    assert len(vectors) == 35
    # A shorter last piece is padded, which changes nothing.
    alone = scorer._embedded(" ".join(text.split()[30:]))
    assert torch.allclose(vectors[30:], alone, atol=1e-5)


def test_records_and_tables_get_it(tmp_path, model):
    pages = [("a.png", "line", "the cat"), ("b.png", "line", "the dog sat"), ("c.png", "page", "page")]
    sample_set = load_set(write_set(tmp_path / "set", pages))
    reader = TableReader("good", {"a.png": "the cat", "b.png": "the dog sat", "c.png": "down"})
    result, scored = evaluate([sample_set], [reader], io.StringIO())
    result = with_bert_scores(result, scored, BertScorer(model))
    tiers = result.readers[0].tiers
    assert tiers["line"].bert_score == pytest.approx(1.0, abs=1e-5)
    assert tiers["page"].bert_score < 0.99
    assert result.versions["bert_score_model"] == "tiny-bert"
    assert "BERTScore" in text_table(result)


def test_a_missing_model_is_said(tmp_path, model, capsys):
    with pytest.raises(ReaderError, match="BERTScore cannot use"):
        BertScorer(str(tmp_path))
    words = f"evaluate --data {write_set(tmp_path / 's', [('a.png', 'line', 'x')])} --bert-score {tmp_path}/none"
    assert main([*words.split(), "--model", str(tmp_path)]) == 2
    assert "BERTScore" in capsys.readouterr().err
