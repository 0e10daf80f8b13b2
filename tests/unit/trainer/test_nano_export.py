"""Nano's last step and the texts of its vocabulary."""

from __future__ import annotations

import lzma
from collections import Counter

import pytest
import torch

from shared.deepseek_ocr.loading import load_checkpoint
from tests.support.tiny_model import tiny_config, tiny_model, tiny_tokenizer
from trainer.data.blocks import Block, FixedLines, Heading, Items, Paragraph, Table
from trainer.nano import export
from trainer.nano.shards import save_shards
from trainer.nano.vocabulary_texts import block_text, sample_texts


@pytest.fixture
def tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer()._backend.save(str(path))
    return path


def test_the_checkpoint_reads_like_the_run_it_came_from(tmp_path, tokenizer_file, monkeypatch):
    monkeypatch.setattr(export, "nano_config", tiny_config)
    model = tiny_model(seed=3)
    save_shards(model, tmp_path / "run", {"steps": 1})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("card")
    sizes = export.export_checkpoint(tmp_path / "run", tokenizer_file, tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out")
    weights = dict(model.named_parameters())
    for name, value in loaded.model.named_parameters():
        # bfloat16 keeps 8 bits, int8 rows 7 of the row's largest value.
        largest = weights[name].detach().abs().max()
        assert torch.allclose(value, weights[name], atol=float(largest) / 100), name
    assert loaded.tokenizer.encode_plain("the page") == tiny_tokenizer().encode_plain("the page")
    assert (tmp_path / "out" / "README.md").read_text() == "card"
    assert sizes["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_a_tokenizer_of_another_size_is_refused(tmp_path, tokenizer_file):
    with pytest.raises(ValueError, match="has 278 ids"):
        export.export_checkpoint(tmp_path, tokenizer_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_blocks_become_the_text_that_is_printed():
    blocks: list[Block] = [
        Paragraph("a b"),
        Heading("c"),
        FixedLines(("d", "e")),
        Items(("- f", "- g")),
        Table((("h", "1"), ("i", "2"))),
    ]
    assert [block_text(block) for block in blocks] == ["a b", "c", "d\ne", "- f\n- g", "h 1\ni 2"]


def test_the_vocabularys_texts_are_the_corpus_and_what_pages_add_to_it(tmp_path):
    (tmp_path / "en.txt.xz").write_bytes(lzma.compress(b"A sentence about xylophones.\n" * 40))
    (tmp_path / "words-en.txt.xz").write_bytes(lzma.compress(b"xylophone\nquartz\n" * 20))
    texts = list(sample_texts(tmp_path, num_pages=30))
    assert texts == list(sample_texts(tmp_path, num_pages=30))
    letters = Counter("".join(texts))
    assert letters["x"] > 100
    assert sum(letters[digit] for digit in "0123456789") > 100
    assert all(text.strip() for text in texts)
