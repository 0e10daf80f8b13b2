"""Views made on the device against Pillow's, bit for bit; plain torch on the CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.engine.vision.resize import prepare_views_on_device
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling, plan_views
from shared.deepseek_ocr.images import prepare_views

STRETCH = GeometryConfig(
    tiny_px=64, small_px=80, base_px=96, large_px=128, tile_px=80, global_px=96, min_tiles=2, max_tiles=6
)
NATIVE = GeometryConfig(
    small_px=80,
    tile_px=80,
    global_px=80,
    squash=(),
    upscale=False,
    tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
)
CONFIGS = {"stretch": STRETCH, "native": NATIVE}
NOISE = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)


def page_of(width: int, height: int, *, hard: bool) -> np.ndarray:
    """Noise, or noise cut to black and white, which drives sums past both ends of 8 bits."""
    page = NOISE[:height, :width]
    return np.where(page > 127, 255, 0).astype(np.uint8) if hard else page


def assert_same(page: np.ndarray, mode: Mode, config: GeometryConfig) -> None:
    height, width, _ = page.shape
    plan = plan_views(width, height, mode, config)
    expected = prepare_views(Image.fromarray(page), plan, config)
    found = prepare_views_on_device(torch.from_numpy(page), plan, config)
    for ours, pillows in zip(found, expected, strict=True):
        assert ours.shape == pillows.shape
        assert np.array_equal(ours.numpy(), pillows), (width, height, mode)


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    name=st.sampled_from(sorted(CONFIGS)),
    hard=st.booleans(),
    choice=st.integers(0, 4),
)
def test_views_equal_pillows(width: int, height: int, name: str, hard: bool, choice: int):
    config = CONFIGS[name]
    mode = config.modes[choice % len(config.modes)]
    assert_same(page_of(width, height, hard=hard), mode, config)


@pytest.mark.parametrize("size", [(1240, 1754), (640, 640), (1754, 1240), (333, 2000)], ids=str)
@pytest.mark.parametrize("mode", [Mode.SMALL, Mode.GUNDAM])
def test_views_of_public_sizes_equal_pillows(size: tuple[int, int], mode: Mode):
    page = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert_same(page, mode, GeometryConfig())


@pytest.mark.parametrize(
    "image", [torch.zeros(4, 4, 3), torch.zeros(4, 4, 4, dtype=torch.uint8)], ids=["float", "rgba"]
)
def test_other_pixels_are_refused(image: torch.Tensor):
    plan = plan_views(4, 4, Mode.SMALL, STRETCH)
    with pytest.raises(ValueError, match="uint8"):
        prepare_views_on_device(image, plan, STRETCH)
