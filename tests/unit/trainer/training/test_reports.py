"""What TensorBoard and Weights & Biases are told of a run."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.support.training import run_small, write_checkpoint, write_words
from trainer.training.callbacks import RunFacts


def test_tensorboard_has_data_rank_and_the_base_models_error_rate(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 8)
    summary = run_small(tmp_path, max_steps=1, use_tensorboard=True, lora_rank=5)
    found = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    (base,) = found.Scalars("base/cer")
    assert base.value == pytest.approx(summary.base_cer)
    (text,) = found.Tensors("run/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "| data/name | words |" in shown
    assert f"| data/fingerprint | {record['data']['fingerprint']} |" in shown
    assert "| adapter/rank | 5 |" in shown


def test_weights_and_biases_get_the_same(tmp_path, monkeypatch):
    """Its package is not installed here; the two calls are those of its documentation."""
    config, summary = {}, {}
    updates = SimpleNamespace(update=lambda values, allow_val_change: config.update(values))
    stub = SimpleNamespace(run=SimpleNamespace(summary=summary), config=updates)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    facts = RunFacts({"data/name": "words", "adapter/rank": 5}, None, use_wandb=True)
    facts.add("base/cer", 0.25)
    state = TrainerState(is_world_process_zero=True)
    facts.on_train_begin(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, TrainerControl())
    assert config == {"data/name": "words", "adapter/rank": 5, "base/cer": 0.25}
    assert summary == {"base/cer": 0.25}
