"""What the backend asks of Unsloth, which a double answers as Unsloth 2026.10.9 does: it does not run on a CPU."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.ocr2 import tiny_ocr2, write_ocr2
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.backends.protocol import AdapterRequest
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import ATTENTION
from trainer.training.targets import choose_modules


class FastVisionModel:
    """Its refusals are those that the library makes."""

    @staticmethod
    def from_pretrained(folder, *, dtype, **_):
        model: Any = type(tiny_ocr2()).from_pretrained(folder, dtype=dtype)
        model.max_seq_length = 8
        return model, None

    @staticmethod
    def get_peft_model(
        model, *, target_modules, target_parameters, r, lora_alpha, random_state, use_gradient_checkpointing, **_
    ):
        assert model.max_seq_length
        assert not target_parameters
        model.requires_grad_(requires_grad=False)
        # The library lets layers recompute by a flag that only transformers' own kind of layer has.
        layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
        if use_gradient_checkpointing and not layers:
            raise ValueError(f"{type(model).__name__} is not compatible with gradient checkpointing")
        for layer in layers:
            layer.gradient_checkpointing = bool(use_gradient_checkpointing)
        model.enable_input_require_grads()
        torch.manual_seed(random_state)
        return get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules))

    @staticmethod
    def for_training(model):
        model.train()


@pytest.fixture
def recomputed(monkeypatch) -> list[nn.Module]:
    """The layers that the library's own checkpoint has called, with the library in place."""
    called: list[nn.Module] = []

    def offloaded(function, *args, use_reentrant=None, preserve_rng_state=True):
        called.append(function.__self__)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    library, zoo, recomputing = (ModuleType(name) for name in ("unsloth", "unsloth_zoo", "gradient_checkpointing"))
    library.FastVisionModel = FastVisionModel  # type: ignore[attr-defined]
    recomputing.unsloth_offloaded_gradient_checkpoint = offloaded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", library)
    monkeypatch.setitem(sys.modules, "unsloth_zoo", zoo)
    monkeypatch.setitem(sys.modules, "unsloth_zoo.gradient_checkpointing", recomputing)
    monkeypatch.delitem(sys.modules, "trainer.backends.unsloth", raising=False)
    return called


def request_of(checkpoint_folder: Path, *, gradient_checkpointing: bool) -> AdapterRequest:
    return AdapterRequest(
        checkpoint=str(checkpoint_folder),
        device=torch.device("cpu"),
        choose=partial(choose_modules, targets=ATTENTION, with_vision=False),
        rank=2,
        alpha=4,
        dropout=0.0,
        use_rslora=False,
        in_4bit=False,
        gradient_checkpointing=gradient_checkpointing,
        max_length=64,
        seed=0,
    )


def native_checkpoint(folder: Path) -> Path:
    save_checkpoint(tiny_model(), folder, storage="float32")
    tiny_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    return folder


def gradients(adapted) -> dict[str, torch.Tensor]:
    ids = torch.arange(10, 30)[None]
    embeds = adapted.model.get_base_model().embed_inputs(ids, [])
    adapted.model(inputs_embeds=embeds, labels=ids, use_cache=False)["loss"].backward()
    return {name: each.grad for name, each in adapted.model.named_parameters() if each.grad is not None}


def test_layers_of_our_own_class_are_recomputed_by_the_librarys_checkpoint(tmp_path, recomputed):
    adapt = importlib.import_module("trainer.backends.unsloth").adapt
    folder = native_checkpoint(tmp_path / "tiny")
    expected = gradients(adapt(request_of(folder, gradient_checkpointing=False)))
    assert not recomputed
    adapted = adapt(request_of(folder, gradient_checkpointing=True))
    found = gradients(adapted)
    assert recomputed == list(adapted.model.get_base_model().model.layers)
    assert adapted.keeps_logits
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * len(ATTENTION), "two layers, two matrices each"
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name])


def test_layers_of_transformers_class_are_told_to_recompute(tmp_path, recomputed):
    adapt = importlib.import_module("trainer.backends.unsloth").adapt
    adapted = adapt(request_of(write_ocr2(tmp_path / "tiny", tiny_ocr2()), gradient_checkpointing=True))
    layers = adapted.model.get_base_model().model.language_model.layers
    assert all(layer.gradient_checkpointing for layer in layers)
    assert not recomputed
    assert not adapted.keeps_logits


@pytest.mark.parametrize("content", [None, "torn"])
def test_broken_weights_are_the_users_error(tmp_path, recomputed, content):
    adapt = importlib.import_module("trainer.backends.unsloth").adapt
    folder = write_ocr2(tmp_path / "tiny", tiny_ocr2())
    (folder / "model.safetensors").unlink()
    if content:
        (folder / "model.safetensors").write_text(content)
    with pytest.raises(TrainingError) as caught:
        adapt(request_of(folder, gradient_checkpointing=False))
    assert caught.value.code == TrainingCode.MODEL_UNUSABLE
