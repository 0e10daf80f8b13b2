"""Layers with weights in oneDNN's layout: the same products, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from service.engine.cpu import packed_linear
from service.engine.cpu.packed_linear import MIN_ROWS, PackedExperts, PackedLinear, with_packed_layers
from tests.unit.service.engine.tiny import tiny_model


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(MIN_ROWS, 48), (3, 5, 7, 48), (1, 48), (0, 48)])
def test_products_are_those_of_the_layer(has_bias, shape):
    torch.manual_seed(0)
    linear = nn.Linear(48, 72, bias=has_bias)
    packed, x = PackedLinear(linear), torch.randn(shape)
    with torch.inference_mode():
        near(packed(x), linear(x))
        # Rows as attention leaves them, not next to each other in memory.
        turned = torch.randn(40, 3, 48).transpose(0, 1)
        near(packed(turned), linear(turned))


def test_products_in_bfloat16_are_those_of_the_layer():
    torch.manual_seed(0)
    linear = nn.Linear(48, 72).to(torch.bfloat16)
    packed, x = PackedLinear(linear), torch.randn(MIN_ROWS, 48)
    with torch.inference_mode():
        found = packed(x.bfloat16())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, linear(x.bfloat16()), rtol=0.02, atol=0.02)
        # Rows of another type than the weights are none of its own.
        with pytest.raises(RuntimeError):
            packed(x)


def test_many_rows_go_through_the_packed_weights(monkeypatch):
    layer, used = PackedLinear(nn.Linear(8, 8)), []
    multiply = packed_linear.PackedWeights.product
    monkeypatch.setattr(
        packed_linear.PackedWeights,
        "product",
        lambda self, x, bias=None: used.append(len(x)) or multiply(self, x, bias),
    )
    with torch.inference_mode():
        layer(torch.zeros(MIN_ROWS, 8))
        layer(torch.zeros(MIN_ROWS - 1, 8))
    assert used == [MIN_ROWS]


def test_gradients_take_the_layer_s_own_way():
    layer = PackedLinear(nn.Linear(8, 4))
    layer(torch.ones(MIN_ROWS, 8)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.unique().tolist() == [MIN_ROWS]


def test_the_twin_has_the_same_parameters_and_results():
    plain = tiny_model()
    packed = with_packed_layers(plain)
    assert {type(layer) for layer in packed.modules()} >= {PackedLinear, PackedExperts}
    assert not any(isinstance(layer, PackedLinear | PackedExperts) for layer in plain.modules())
    before, after = dict(plain.named_parameters()), dict(packed.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    ids = torch.randint(20, 60, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_other_models_are_taken_as_they_are(monkeypatch):
    model = tiny_model()
    halved = copy.deepcopy(model).to(torch.float16)
    assert with_packed_layers(halved) is halved
    monkeypatch.setattr(packed_linear, "MAX_WEIGHTS", 10)
    assert with_packed_layers(model) is model


def test_without_such_products_a_model_is_taken_as_it_is(monkeypatch):
    def fail(self, weight_OI):
        raise RuntimeError("not supported")

    monkeypatch.setattr(packed_linear.PackedWeights, "__init__", fail)
    model = tiny_model()
    assert with_packed_layers(model) is model
