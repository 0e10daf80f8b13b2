import pytest
import torch

from service.engine.kernels.int8_rows import (
    Int8Rows,
    in_full,
    one_after_another,
    one_below_another,
    split_inputs,
    to_int8,
)
from shared.deepseek_ocr.quantisation import dequantise_rows, quantise_rows

CPU = torch.device("cpu")


def weights(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight[..., 1, :] = 0
    return weight


def test_no_weight_is_off_by_more_than_half_its_rows_scale():
    weight = weights(3, 7, 50)
    rows = to_int8(weight, CPU)
    assert (rows.levels.dtype, rows.levels.shape, rows.scale.shape) == (torch.int8, weight.shape, (3, 7))
    off = (in_full(rows, torch.float32) - weight).abs()
    assert bool((off <= 0.5001 * rows.scale.unsqueeze(-1)).all())
    assert int(rows.levels.abs().max()) == 127


def test_rows_of_a_checkpoint_get_their_own_levels_back():
    levels, scale = quantise_rows(weights(33, 70))
    rows = to_int8(dequantise_rows(levels, scale), CPU)
    assert torch.equal(rows.levels, levels)
    assert torch.equal(in_full(rows, torch.float32), dequantise_rows(levels, scale))


def test_large_weights_are_rounded_piece_by_piece(monkeypatch):
    weight = weights(5, 6, 40)
    whole = to_int8(weight, CPU)
    monkeypatch.setattr("service.engine.kernels.int8_rows._FEW_WEIGHTS", 160)
    pieces = to_int8(weight, CPU)
    assert torch.equal(pieces.levels, whole.levels)
    assert torch.equal(pieces.scale, whole.scale)


def test_full_weights_are_rounded_once():
    rows = to_int8(weights(9, 64), CPU)
    assert torch.equal(in_full(rows, torch.bfloat16), in_full(rows, torch.float32).bfloat16())


@pytest.mark.parametrize("change", [
    one_after_another,
    lambda first, _: one_below_another(first),
    lambda first, _: split_inputs(first[0], 4),
    lambda first, _: first[1:],
])  # fmt: skip
def test_rows_are_arranged_as_tensors_are(change):
    first, second = to_int8(weights(3, 5, 8), CPU), to_int8(2 * weights(2, 5, 8), CPU)
    arranged = change(first, second)
    assert isinstance(arranged, Int8Rows)
    expected = change(*(in_full(rows, torch.float32) for rows in (first, second)))
    assert torch.equal(in_full(arranged, torch.float32), expected)
    assert arranged.levels.is_contiguous()
    assert arranged.scale.is_contiguous()
