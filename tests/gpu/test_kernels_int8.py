"""Products with 8-bit rows, against plain torch in float32 with the weights that the rows mean."""

import pytest
import torch

from service.engine.kernels.int8_rows import Int8Rows, in_full, to_int8
from service.engine.kernels.reference import decoder as reference
from service.engine.lora.bank import ExpertLowRank
from tests.support.kernels import BF16, DEVICE, F32, GPU_MARK, HAS_GPU, TOLERANCE, assert_near, noise

pytestmark = [*GPU_MARK, pytest.mark.usefixtures("poisoned")]
DTYPES = [F32, BF16]
HIDDEN, INNER, EXPERTS, CHOSEN, RANK = (1280, 896, 66, 8, 16) if HAS_GPU else (40, 24, 6, 3, 4)
EPS = 1e-6
SLOTS = 3
Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Int8Rows, Int8Rows]
"""Of a mixture."""


def rows(*shape: int) -> Int8Rows:
    """Random weights as rows, scales of many sizes, and a row of zeros."""
    weight = noise(*shape, scale=shape[-1] ** -0.5)
    weight *= torch.rand(shape[:-1], device=DEVICE).unsqueeze(-1) + 0.5
    weight[..., 1, :] = 0
    return to_int8(weight, DEVICE)


def case(tokens: int, dtype: torch.dtype) -> tuple[Arguments, torch.Tensor]:
    x, residual = noise(tokens, HIDDEN, dtype=dtype), noise(tokens, HIDDEN, dtype=dtype)
    weights, experts = torch.rand(tokens, EXPERTS, device=DEVICE).topk(CHOSEN, dim=1)
    gate_up, down = rows(EXPERTS, 2 * INNER, HIDDEN), rows(EXPERTS, HIDDEN, INNER)
    return (x, weights.contiguous(), experts.int().contiguous(), gate_up, down), residual


def wide(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in float32, weights in full."""
    x, weights, experts, gate_up, down = arguments
    return x.float(), weights, experts, in_full(gate_up, F32), in_full(down, F32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 70, 256, 4100] if HAS_GPU else [1, 2, 17])
def test_mixture(fused, tokens, dtype):
    arguments, residual = case(tokens, dtype)
    expected = reference.mixture(*wide(arguments))
    assert_near(fused.mixture(*arguments).float(), expected, TOLERANCE[dtype])
    assert_near(reference.mixture(*arguments).float(), expected, TOLERANCE[dtype])
    added = residual.clone()
    fused.mixture_add(*arguments, added)
    assert_near(added.float(), expected + residual.float(), TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [1, 4, 40] if HAS_GPU else [1, 4])
def test_both_ways_through_the_experts_agree(fused, tokens):
    from service.engine.kernels.triton import expert_pairs, expert_tiles

    arguments, out = case(tokens, BF16)
    expected = reference.mixture(*wide(arguments))
    expert_pairs.mix_pairs(*arguments, None, out, expert_pairs.PairConfig())
    assert_near(out.float(), expected, TOLERANCE[BF16])
    config = expert_tiles.TileConfig(32, 64, 64, 64, 4, 2)
    expert_tiles.mix_tiles(*arguments, None, out.fill_(7.0), config)
    assert_near(out.float(), expected, TOLERANCE[BF16])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 17, 1000] if HAS_GPU else [1, 19])
def test_mixture_lora(fused, tokens, dtype):
    arguments, residual = case(tokens, dtype)

    def low(*shape: int) -> torch.Tensor:
        return noise(SLOTS, EXPERTS, *shape, dtype=dtype, scale=shape[1] ** -0.5)

    pairs = ExpertLowRank(low(2 * RANK, HIDDEN), low(2 * INNER, RANK), low(RANK, INNER), low(HIDDEN, RANK))
    wide_pairs = ExpertLowRank(*(tensor.float() for tensor in pairs.tensors))
    slots = torch.randint(-1, SLOTS, (tokens,), dtype=torch.int32, device=DEVICE)
    expected = reference.mixture_lora(*wide(arguments), wide_pairs, slots)
    assert_near(fused.mixture_lora(*arguments, pairs, slots).float(), expected, TOLERANCE[dtype])
    assert_near(reference.mixture_lora(*arguments, pairs, slots).float(), expected, TOLERANCE[dtype])
    added = residual.clone()
    fused.mixture_lora_add(*arguments, pairs, slots, added)
    assert_near(added.float(), expected + residual.float(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [HIDDEN, 3 * HIDDEN + 8])
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 64, 65, 256, 300] if HAS_GPU else [1, 3, 70, 257])
def test_linear(fused, tokens, outputs, dtype):
    x, weight, norm = noise(tokens, HIDDEN, dtype=dtype), rows(outputs, HIDDEN), noise(HIDDEN, dtype=dtype)
    residual, full = noise(tokens, outputs, dtype=dtype), in_full(weight, F32)
    expected = x.float() @ full.t()
    assert_near(fused.linear(x, weight).float(), expected, TOLERANCE[dtype])
    assert_near(reference.linear(x, weight).float(), expected, TOLERANCE[dtype])
    normed = reference.rms_norm(x, norm, EPS).float() @ full.t()
    assert_near(fused.norm_linear(x, norm, EPS, weight).float(), normed, TOLERANCE[dtype])
    added = residual.clone()
    fused.linear_add(x, weight, added)
    assert_near(added.float(), expected + residual.float(), TOLERANCE[dtype])
