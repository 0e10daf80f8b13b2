"""4 bits through a double of bitsandbytes, which needs CUDA."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.support.ocr2 import tiny_ocr2
from tests.support.tiny_model import tiny_model
from trainer.backends.peft import quantise
from trainer.training.errors import TrainingCode, TrainingError


class Params4bit(nn.Parameter):
    """Holds what it is given."""

    def __new__(cls, data, requires_grad, quant_type):
        assert quant_type == "nf4"
        return super().__new__(cls, data, requires_grad)


class Linear4bit(nn.Linear):
    """A linear module of another class."""

    def __init__(self, inputs, outputs, *, bias, compute_dtype, quant_type, device):
        super().__init__(inputs, outputs, bias=bias, device=device)


@pytest.fixture
def library(monkeypatch) -> None:
    modules = ModuleType("bitsandbytes.nn")
    modules.Linear4bit, modules.Params4bit = Linear4bit, Params4bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", modules)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("make", "layers"), [(tiny_model, "model.layers."), (tiny_ocr2, "model.language_model.layers.")]
)
def test_the_decoder_is_stored_in_4_bits_and_what_a_page_is_encoded_with_is_not(make, layers):
    model = make()
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    quantise(model, torch.device("cpu"))
    small = {name for name, module in model.named_modules() if type(module) is Linear4bit}
    assert small == {name for name in linear if name.startswith(layers)}
    assert any("shared_experts" in name for name in small)
    assert linear - small > {"lm_head"}
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(TrainingError, match="trainer-cuda") as caught:
        quantise(tiny_model(), torch.device("cpu"))
    assert caught.value.code is TrainingCode.PACKAGE_MISSING
