"""A mixture whose experts carry adapters, against plain torch: mixed adapters, odd shapes, rows without one."""

import pytest
import torch

from service.engine.kernels.reference import decoder as reference
from service.engine.lora.bank import ExpertLowRank
from tests.support.kernels import BF16, DEVICE, F32, GPU_MARK, HAS_GPU, TOLERANCE, assert_near, noise

pytestmark = [*GPU_MARK, pytest.mark.usefixtures("poisoned")]
# Hidden width, expert width, experts, chosen, rank.
SHAPES = [(1280, 896, 64, 6, 16), (1280, 896, 64, 6, 40)] if HAS_GPU else [(40, 24, 5, 2, 4), (24, 70, 3, 1, 20)]
TOKENS = [1, 2, 3, 17, 256, 1000, 4100] if HAS_GPU else [1, 5, 19]
SLOTS = 4 if HAS_GPU else 3


def case(tokens, shape, dtype):
    hidden, inner, experts, chosen, rank = shape
    x = noise(tokens, hidden, dtype=dtype)
    scores = torch.rand(tokens, experts, device=DEVICE)
    weights, choice = scores.topk(chosen, dim=1)
    # Behind the routed experts stand shared ones, as a decoder has them.
    gate_up = noise(experts + 2, 2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
    down = noise(experts + 2, hidden, inner, dtype=dtype, scale=inner**-0.5)
    low = ExpertLowRank(
        noise(SLOTS, experts, 2 * rank, hidden, dtype=dtype, scale=hidden**-0.5),
        noise(SLOTS, experts, 2 * inner, rank, dtype=dtype, scale=rank**-0.5),
        noise(SLOTS, experts, rank, inner, dtype=dtype, scale=inner**-0.5),
        noise(SLOTS, experts, hidden, rank, dtype=dtype, scale=rank**-0.5),
    )
    slots = torch.randint(-1, SLOTS, (tokens,), dtype=torch.int32, device=DEVICE)
    return [x, weights.contiguous(), choice.int().contiguous(), gate_up, down, low, slots]


def wide(arguments):
    """The same in float32, where the tokens are few enough for it on any device."""
    low = ExpertLowRank(*(tensor.float() for tensor in arguments[5].tensors))
    return [*(tensor.float() for tensor in arguments[:2]), arguments[2], *(t.float() for t in arguments[3:5]), low,
            arguments[6]]  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_mixture_lora(fused, tokens, shape, dtype):
    arguments = case(tokens, shape, dtype)
    expected = reference.mixture_lora(*wide(arguments))
    assert_near(fused.mixture_lora(*arguments).float(), expected, TOLERANCE[dtype])
    residual = noise(tokens, shape[0], dtype=dtype)
    added = residual.clone()
    fused.mixture_lora_add(*arguments, added)
    assert_near(added.float(), expected + residual.float(), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_without_an_adapter_are_those_of_the_base(fused, shape):
    arguments = case(5, shape, F32)
    plain = fused.mixture(*arguments[:5])
    mixed = fused.mixture_lora(*arguments)
    slots = arguments[-1]
    assert torch.equal(mixed[slots < 0], plain[slots < 0])
    arguments[-1] = torch.full_like(slots, -1)
    assert torch.equal(fused.mixture_lora(*arguments), plain)


@pytest.mark.parametrize("shape", SHAPES[:1])
def test_neighbours_do_not_change_a_row(fused, shape):
    arguments = case(19, shape, F32)
    results = []
    for others in (0, 2, -1):
        arguments[-1] = torch.full_like(arguments[-1], others)
        arguments[-1][0] = 1
        results.append(fused.mixture_lora(*arguments)[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
