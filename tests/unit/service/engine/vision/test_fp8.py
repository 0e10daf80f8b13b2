"""The vision encoders with their large products in FP8, emulated in plain torch."""

from pathlib import Path

import pytest
import torch

from service.engine.config import EngineLimits
from service.engine.factory import make_engine
from service.engine.kernels import fp8_rows
from service.engine.kernels.fp8_rows import fp8_weight, to_fp8
from service.engine.kernels.reference import vision as reference
from service.engine.vision.runner import GpuVision
from service.errors import EngineError
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from shared.deepseek_ocr.protocol import OcrModel
from tests.support.interpreter import relative_error
from tests.support.ocr2 import reader_of, tiny_ocr2

ROOT = Path(__file__).resolve().parents[5]


@pytest.fixture(scope="module")
def nano() -> LoadedCheckpoint:
    return load_checkpoint(ROOT / "shared" / "nano")


def test_no_number_of_a_row_is_off_by_more_than_its_last_digit():
    torch.manual_seed(0)
    matrix = torch.randn(7, 48) * torch.tensor([1e-4, 1e-2, 1.0, 3.0, 50.0, 0.0, 1e4]).unsqueeze(1)
    rows = to_fp8(matrix)
    # Three digits after the point of a binary number; below 2^-6 of the scaled row steps are even.
    most = (matrix.abs() / 16).maximum(rows.scale.unsqueeze(1) * 2**-10)
    assert bool(((rows.in_full() - matrix).abs() <= most * (1 + 1e-6)).all())
    assert rows.in_full().abs().amax(dim=1).tolist() == pytest.approx(matrix.abs().amax(dim=1).tolist())


@pytest.mark.parametrize("shape", [(32, 40), (40, 32)])
def test_a_weight_that_tensor_cores_cannot_take_stays_in_full(shape: tuple[int, int]):
    weight = torch.randn(shape)
    assert fp8_weight(weight) is weight


@torch.inference_mode()
def test_nanos_features_are_near_those_of_weights_in_full(nano: LoadedCheckpoint):
    view = torch.zeros(640, 640, 3, dtype=torch.uint8)
    view[200:240, 100:500] = torch.randint(0, 256, (40, 400, 1), dtype=torch.uint8)
    model = nano.model
    (full,) = GpuVision(model, kernels=reference).encode([view.numpy()])
    (rounded,) = GpuVision(model, kernels=reference, is_fp8=True).encode([view.numpy()])
    # More than any float32 error, so the products were in FP8, each number within 6 %.
    assert 1e-3 < relative_error(rounded, full) < 6e-2


@torch.inference_mode()
@pytest.mark.parametrize("model", ["nano", "ocr2"])
def test_but_for_rounding_features_are_those_of_weights_in_full(
    model: str, nano: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    reader: OcrModel = nano.model if model == "nano" else reader_of(tiny_ocr2(1, 96, is_global=True))
    side_px = 640 if model == "nano" else 768
    view = torch.randint(0, 256, (side_px, side_px, 3), dtype=torch.uint8).numpy()
    (full,) = GpuVision(reader, kernels=reference).encode([view])
    monkeypatch.setattr(fp8_rows, "FP8", torch.float32)
    (found,) = GpuVision(reader, kernels=reference, is_fp8=True).encode([view])
    assert relative_error(found, full) < 1e-4
    assert not torch.equal(found, full)


def test_a_cpu_refuses_encoders_in_fp8(nano: LoadedCheckpoint):
    with pytest.raises(EngineError, match="FP8"):
        make_engine(nano, EngineLimits(encodes_in_fp8=True))
