"""The Triton resampling against Pillow, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from service.engine.vision.resize import prepare_views_on_device
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling, plan_views
from shared.deepseek_ocr.images import prepare_views
from tests.support.interpreter import DEVICE, HAS_GPU, import_kernels

pytestmark = [pytest.mark.gpu] if HAS_GPU else []
SMALL = {"tiny_px": 32, "small_px": 48, "base_px": 64, "large_px": 64, "tile_px": 48, "global_px": 64, "max_tiles": 4}
CONFIGS = [GeometryConfig(**SMALL), GeometryConfig(**SMALL, squash=(), upscale=False, tiling=Tiling.NATIVE)]
SIZES = [(1, 1), (48, 48), (30, 200), (150, 97), (64, 80), (211, 3)]
if HAS_GPU:
    CONFIGS += [GeometryConfig(), GeometryConfig(tiling=Tiling.NATIVE, upscale=False, squash=())]
    SIZES += [(1240, 1754), (640, 640), (2480, 3508), (4000, 300), (1280, 1920), (60, 5000)]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", [Mode.SMALL, Mode.GUNDAM])
def test_views_equal_pillows(size: tuple[int, int], mode: Mode, config: GeometryConfig):
    operation = import_kernels("service.engine.kernels.triton.vision_resize").resample
    page = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3), np.uint8) * 255
    plan = plan_views(*size, mode, config)
    expected = prepare_views(Image.fromarray(page), plan, config)
    found = prepare_views_on_device(torch.from_numpy(page).to(DEVICE), plan, config, operation)
    for ours, pillows in zip(found, expected, strict=True):
        assert np.array_equal(ours.cpu().numpy(), pillows)
