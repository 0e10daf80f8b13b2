"""Fused kernels of the vision encoder against plain torch in float32; on the GPU, or interpreted at small sizes."""

import pytest
import torch

from tests.support.interpreter import DEVICE, HALF, HAS_GPU, import_kernels, relative_error

import_kernels("service.engine.kernels.triton.vision")
from service.engine.kernels.fp8_rows import Fp8Rows, to_fp8  # noqa: E402
from service.engine.kernels.reference import vision as vision_reference  # noqa: E402
from service.engine.kernels.triton import (  # noqa: E402
    vision_attention,
    vision_elementwise,
    vision_fp8,
    vision_linear,
)

pytestmark = [pytest.mark.gpu] if HAS_GPU else []
TOLERANCES = {HALF: 1e-2} if HAS_GPU else {HALF: 1e-2, torch.float32: 1e-5}
"""On the device products of float32 take minutes to compile, and nothing asks for them."""
BY_TYPE = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def noise(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)


def poison(*shape: int, dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the next allocation of this size is likely to get."""
    torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


WINDOWS = [(2, 9, 9, 2, 16, 5), (1, 20, 20, 2, 32, 14), (1, 14, 14, 1, 64, 14), (1, 7, 11, 1, 16, 16)]
if HAS_GPU:
    WINDOWS += [(2, 64, 64, 12, 64, 14), (3, 40, 40, 12, 64, 14), (2, 40, 40, 4, 64, 10)]


@BY_TYPE
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
def test_window_attention(shape: tuple[int, ...], dtype: torch.dtype):
    views, height, width, heads, head, side = shape
    qkv = noise(views, height, width, 3 * heads * head, dtype=dtype)
    bias = noise(3 * heads * head, dtype=dtype, seed=1)
    rows, columns = (noise(2 * side - 1, head, dtype=dtype, scale=0.3, seed=seed) for seed in (2, 3))
    poison(views, height, width, heads * head, dtype=dtype)
    out = vision_attention.window_attention(qkv, bias, rows, columns, heads, side)
    exact = [tensor.float() for tensor in (qkv, bias, rows, columns)]
    expected = vision_reference.window_attention(exact[0], exact[1], exact[2], exact[3], heads, side)
    assert relative_error(out, expected) < TOLERANCES[dtype]


GRIDS = [(2, 9, 9, 2, 16), (1, 40, 40, 1, 16), (1, 5, 7, 1, 64), (1, 12, 64, 1, 16)]
if HAS_GPU:
    GRIDS += [(1, 64, 64, 12, 64), (2, 40, 40, 12, 64), (1, 80, 80, 12, 64), (1, 32, 32, 12, 64)]


@BY_TYPE
@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_grid_attention(shape: tuple[int, ...], dtype: torch.dtype):
    views, height, width, heads, head = shape
    qkv = noise(views, height, width, 3 * heads * head, dtype=dtype)
    rows = noise(2 * height - 1, head, dtype=dtype, scale=0.3, seed=2)
    columns = noise(2 * width - 1, head, dtype=dtype, scale=0.3, seed=3)
    poison(views, height, width, heads * head, dtype=dtype)
    out = vision_attention.grid_attention(qkv, rows, columns, heads)
    exact = [tensor.float() for tensor in (qkv, rows, columns)]
    expected = vision_reference.grid_attention(exact[0], exact[1], exact[2], heads)
    assert relative_error(out, expected) < TOLERANCES[dtype]


@BY_TYPE
@pytest.mark.parametrize("channels", [48, 256, 768])
@pytest.mark.parametrize("shifted", [False, True])
def test_layer_norm(channels: int, shifted: bool, dtype: torch.dtype):
    x, weight, bias = (noise(*shape, channels, dtype=dtype, seed=seed) for seed, shape in enumerate(((37,), (), ())))
    shift = noise(channels, dtype=torch.float32, seed=4) if shifted else None
    poison(37, channels, dtype=dtype)
    out = vision_elementwise.layer_norm(x, shift, weight, bias, 1e-6)
    exact = vision_reference.layer_norm(x.float(), shift, weight.float(), bias.float(), 1e-6)
    assert relative_error(out, exact) < TOLERANCES[dtype]


@BY_TYPE
@pytest.mark.parametrize("name", ["linear_gelu", "linear_quick_gelu"])
def test_linear_with_activation(name: str, dtype: torch.dtype):
    x = noise(150, 96, dtype=dtype)
    weight, bias = noise(200, 96, dtype=dtype, scale=0.1, seed=1), noise(200, dtype=dtype, seed=2)
    poison(150, 200, dtype=dtype)
    out = getattr(vision_linear, name)(x, weight, bias)
    exact = getattr(vision_reference, name)(x.float(), weight.float(), bias.float())
    assert relative_error(out, exact) < TOLERANCES[dtype]


@BY_TYPE
@pytest.mark.parametrize("size", [8, 16])
def test_patches(size: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8).to(DEVICE)
    out = vision_elementwise.patches(views, size, dtype)
    # The interpreter cuts floats where the device rounds them.
    assert relative_error(out, vision_reference.patches(views, size, torch.float32)) < (
        1e-7 if dtype == torch.float32 else 2e-3
    )


FP8_CHANNELS = [48, 256, 4096] if HAS_GPU else [48, 256]
"""Of what becomes 8 bits: half as wide as gates and ups."""


def assert_rows_near(rows: Fp8Rows, expected: Fp8Rows) -> None:
    """Sums in another order, and GELU by tanh, move a few numbers to the next one."""
    assert rows.values.is_contiguous()
    assert relative_error(rows.scale, expected.scale) < 1e-3
    assert relative_error(rows.in_full(), expected.in_full()) < 1e-2


@BY_TYPE
@pytest.mark.parametrize("channels", FP8_CHANNELS)
@pytest.mark.parametrize(("added", "shifted"), [(False, False), (True, True)])
def test_norms_that_write_fp8(channels: int, added: bool, shifted: bool, dtype: torch.dtype):
    x, weight, bias = (noise(*shape, channels, dtype=dtype, seed=seed) for seed, shape in enumerate(((37,), (), ())))
    shift = noise(channels, dtype=torch.float32, seed=4) if shifted else None
    more = noise(37, channels, dtype=dtype, seed=5) if added else None
    ours, theirs = x.clone(), x.clone()
    rows = vision_fp8.layer_norm_fp8(ours, more, shift, weight, bias, 1e-6)
    assert_rows_near(rows, vision_reference.layer_norm_fp8(theirs, more, shift, weight, bias, 1e-6))
    assert torch.equal(ours, theirs)
    rows = vision_fp8.rms_norm_fp8(ours, more, weight, 1e-6)
    assert_rows_near(rows, vision_reference.rms_norm_fp8(theirs, more, weight, 1e-6))
    assert torch.equal(ours, theirs)


@BY_TYPE
@pytest.mark.parametrize("channels", FP8_CHANNELS)
def test_activations_that_write_fp8(channels: int, dtype: torch.dtype):
    x, bias = noise(37, channels, dtype=dtype, scale=3.0), noise(channels, dtype=dtype, seed=1)
    x[5] = 0
    for name in ("gelu_fp8", "quick_gelu_fp8"):
        rows = getattr(vision_fp8, name)(x, bias)
        assert_rows_near(rows, getattr(vision_reference, name)(x, bias))
    joined = noise(37, 2 * channels, dtype=dtype, scale=3.0)
    assert_rows_near(vision_fp8.gated_fp8(joined), vision_reference.gated_fp8(joined))


@pytest.mark.skipif(not HAS_GPU, reason="no CPU multiplies rows of FP8")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("tokens", "outputs", "channels"), [(1, 48, 32), (101, 3072, 1024), (4096, 768, 3072)])
def test_product_in_fp8(tokens: int, outputs: int, channels: int, biased: bool):
    x = to_fp8(noise(tokens, channels, dtype=HALF))
    weight = to_fp8(noise(outputs, channels, dtype=HALF, scale=0.1, seed=1))
    bias = noise(outputs, dtype=HALF, seed=2) if biased else None
    out = vision_fp8.linear_fp8(x, weight, bias, HALF)
    assert out.dtype == torch.bfloat16
    # Fast accumulation keeps 14 bits of a sum.
    assert relative_error(out, vision_reference.linear_fp8(x, weight, bias, HALF)) < 1e-2
