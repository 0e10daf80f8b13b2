"""Low-rank kernels against plain torch: mixed adapters, odd shapes, rows without one bit for bit as before."""

import pytest
import torch

from service.engine.kernels.reference import decoder as reference
from tests.support.kernels import BF16, DEVICE, F32, GPU_MARK, HAS_GPU, assert_near, noise

pytestmark = [*GPU_MARK, pytest.mark.usefixtures("poisoned")]
# Inputs, parts, outputs of a part, blocks, rank.
GROUPS = (
    [(1280, 3, 1280, 1, 16), (1792, 1, 1280, 1, 64), (1280, 2, 896, 2, 16), (6848, 1, 1280, 1, 24)]
    if HAS_GPU
    else [(40, 3, 24, 1, 4), (136, 1, 70, 1, 20), (24, 2, 8, 2, 3)]
)
TOKENS = [1, 2, 16, 17, 256, 257, 4100] if HAS_GPU else [1, 5, 17]
SLOTS = 8 if HAS_GPU else 3


def case(tokens, group, dtype):
    inputs, parts, width, blocks, rank = group
    x, out = noise(tokens, inputs, dtype=dtype), noise(tokens, blocks * parts * width, dtype=dtype)
    down = noise(SLOTS, parts * rank, inputs, dtype=dtype, scale=inputs**-0.5)
    up = noise(SLOTS, blocks * parts * width, rank, dtype=dtype, scale=rank**-0.5)
    return x, out, down, up, width


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_lora_add(fused, tokens, group, dtype):
    x, out, down, up, width = case(tokens, group, dtype)
    slots = torch.randint(-1, SLOTS, (tokens,), dtype=torch.int32, device=DEVICE)
    expected = out.clone()
    reference.lora_add(x.double(), wide := expected.double(), down.double(), up.double(), slots, width)
    before = out.clone()
    fused.lora_add(x, out, down, up, slots, width)
    assert_near(out, wide.to(dtype))
    assert torch.equal(out[slots < 0], before[slots < 0])


@pytest.mark.parametrize("shares", [1, 2, 8])
@pytest.mark.parametrize("few", [0, 256])
def test_programs_share_the_adapters_of_a_tile(fused, few, shares, monkeypatch):
    from service.engine.kernels.triton import lora

    monkeypatch.setattr(lora, "FEW_TOKENS", few)
    monkeypatch.setattr(lora, "SHARED_TOKENS", 1000)
    monkeypatch.setattr(lora, "MAX_SHARES", shares)
    x, out, down, up, width = case(17, GROUPS[0], F32)
    slots = torch.tensor([*range(SLOTS), -1] * 17, dtype=torch.int32, device=DEVICE)[:17]
    expected = out.clone()
    reference.lora_add(x, expected, down, up, slots, width)
    fused.lora_add(x, out, down, up, slots, width)
    assert_near(out, expected)


@pytest.mark.parametrize("group", GROUPS[:1])
def test_neighbours_do_not_change_a_row(fused, group):
    x, out, down, up, width = case(17, group, F32)
    results = []
    for slots in ([0] * 17, [0, 1, 2, -1] * 4 + [1], [-1] * 16 + [2]):
        result = out.clone()
        slots_T = torch.tensor([0, *slots[1:]], dtype=torch.int32, device=DEVICE)
        fused.lora_add(x, result, down, up, slots_T, width)
        results.append(result[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_neighbour_that_is_no_number_stays_alone(fused):
    x, out, down, up, width = case(5, GROUPS[0], F32)
    x[1] = float("nan")
    slots = torch.tensor([0, 1, 0, -1, 2], dtype=torch.int32, device=DEVICE)
    fused.lora_add(x, out, down, up, slots, width)
    assert out[1].isnan().all()
    assert out[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("tokens", "width", "blocks"), [(1, 24, 1), (5, 24, 2), (3, 1792, 2)])
def test_gated(fused, tokens, width, blocks, dtype):
    joined = noise(tokens, 2 * width, dtype=dtype)
    assert_near(fused.gated(joined, blocks), reference.gated(joined, blocks))
