"""Nano's last step: from a run's shards to the checkpoint that ships."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.contract.identity import DRAFT_FILE
from shared.deepseek_ocr.draft_head import DraftHead, load_draft_head
from shared.deepseek_ocr.loading import load_checkpoint
from tests.support.tiny_model import tiny_config, tiny_model, tiny_tokenizer
from trainer.nano.training import export
from trainer.nano.training.shards import save_shards


@pytest.fixture
def tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer()._backend.save(str(path))
    return path


def test_the_checkpoint_reads_like_the_run_it_came_from(tmp_path, tokenizer_file, monkeypatch):
    monkeypatch.setattr(export, "nano_config", tiny_config)
    model = tiny_model(seed=3)
    head = DraftHead(model.config.text_config.hidden_size, 1e-6)
    save_shards(model, tmp_path / "run", {"steps": 1}, {"draft": head})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("card")
    sizes = export.export_checkpoint(tmp_path / "run", tokenizer_file, tmp_path / "out")
    loaded: Any = load_checkpoint(tmp_path / "out")
    weights = dict(model.named_parameters())
    for name, value in loaded.model.named_parameters():
        # bfloat16 keeps 8 bits, int8 rows 7 of the row's largest value.
        largest = weights[name].detach().abs().max()
        assert torch.allclose(value, weights[name], atol=float(largest) / 100), name
    assert loaded.tokenizer.encode_plain("the page") == tiny_tokenizer().encode_plain("the page")
    assert (tmp_path / "out" / "README.md").read_text() == "card"
    drafting = load_draft_head(tmp_path / "out", model.config.text_config.hidden_size, 1e-6)
    assert drafting is not None
    torch.testing.assert_close(drafting.mix.weight, head.mix.weight, atol=0.02, rtol=0.01)
    assert sizes["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_a_run_without_a_draft_head_gives_a_checkpoint_without(tmp_path, tokenizer_file, monkeypatch):
    monkeypatch.setattr(export, "nano_config", tiny_config)
    save_shards(tiny_model(), tmp_path / "run", {"steps": 1})
    assert DRAFT_FILE not in export.export_checkpoint(tmp_path / "run", tokenizer_file, tmp_path / "out")
    assert not (tmp_path / "out" / DRAFT_FILE).exists()


def test_a_tokenizer_of_another_size_is_refused(tmp_path, tokenizer_file):
    with pytest.raises(ValueError, match="has 278 ids"):
        export.export_checkpoint(tmp_path, tokenizer_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
