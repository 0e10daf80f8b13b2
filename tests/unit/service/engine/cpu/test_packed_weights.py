import pytest
import torch

from service.engine.cpu.packed_weights import FullMatrix, HalfMatrix, find_levels, pack
from shared.deepseek_ocr.quantisation import dequantise_rows, quantise_rows

HAS_SHORT_PRODUCT = "fbgemm" in torch.backends.quantized.supported_engines
LAYOUTS = [FullMatrix, *([lambda weight: HalfMatrix(*find_levels(weight))] if HAS_SHORT_PRODUCT else [])]


def shipped(outputs, inputs):
    """Weights as a checkpoint of 8-bit rows gives them, a row of zeros among them."""
    weight = torch.randn(outputs, inputs)
    weight[2] = 0
    return dequantise_rows(*quantise_rows(weight))


def test_levels_and_scales_are_the_weights_bit_for_bit():
    torch.manual_seed(0)
    weight = shipped(33, 70)
    levels, scale = find_levels(weight)
    assert torch.equal(levels, levels.round())
    assert levels.abs().amax() == 127
    assert torch.equal(levels * scale[:, None], weight)
    assert torch.equal(levels.half().float(), levels)


@pytest.mark.parametrize("change", [lambda weight: weight + 1e-6, torch.randn_like])
def test_other_weights_stay_as_they_are(change):
    torch.manual_seed(0)
    weight = change(shipped(33, 70))
    assert find_levels(weight) is None
    assert isinstance(pack(weight), FullMatrix)


def test_a_processor_without_the_short_product_keeps_float32(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no FBGEMM")

    monkeypatch.setattr(torch, "fbgemm_pack_gemm_matrix_fp16", refuse)
    assert isinstance(pack(shipped(8, 8)), FullMatrix)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_products_are_those_of_float64(layout, rows):
    torch.manual_seed(1)
    weight, x, residual = shipped(33, 70), torch.randn(rows, 70), torch.randn(rows, 33)
    expected = x.double() @ weight.double().t()
    matrix = layout(weight)
    torch.testing.assert_close(matrix.product(x).double(), expected, rtol=1e-5, atol=1e-5)
    expected = expected + residual
    matrix.add_to(residual, x)
    torch.testing.assert_close(residual.double(), expected, rtol=1e-5, atol=1e-5)
