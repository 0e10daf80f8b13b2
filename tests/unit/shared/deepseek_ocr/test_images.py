import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from shared.deepseek_ocr.forms import without_copies
from shared.deepseek_ocr.geometry import PADDING_GREY, GeometryConfig, Mode, Tiling, plan_views
from shared.deepseek_ocr.images import cut_tiles, prepare_views

PUBLIC = GeometryConfig()
NANO = GeometryConfig(
    downsample=2,
    global_px=640,
    squash=(),
    upscale=False,
    tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
)
REFERENCE = Path(__file__).parent / "reference"


def _reference_functions() -> tuple[Callable[[int, int], Image.Image], Callable[[np.ndarray], str]]:
    spec = importlib.util.spec_from_file_location("geometry_reference", REFERENCE / "geometry_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_image, module.digest


make_image, digest = _reference_functions()
CASES: list[dict[str, Any]] = json.loads((REFERENCE / "geometry.json").read_text(encoding="utf-8"))
SIZES = sorted({tuple(case["size"]) for case in CASES})


def test_reference_covers_forty_sizes_in_every_mode():
    assert len(SIZES) >= 40
    assert {(case["mode"], tuple(case["size"])) for case in CASES} == {(mode, size) for mode in Mode for size in SIZES}
    assert sum(not case["global"] for case in CASES) <= 5
    assert all(case["tiles"] for case in CASES if case["grid"] != [0, 0])


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_views_equal_those_of_the_public_code(size: tuple[int, int]):
    image = make_image(*size)
    for case in (case for case in CASES if tuple(case["size"]) == size):
        plan = plan_views(*size, Mode(case["mode"]), PUBLIC)
        global_view, tiles = prepare_views(image, plan, PUBLIC)
        assert plan.num_vision_tokens == case["tokens"], case["mode"]
        assert [plan.tile_columns, plan.tile_rows] == case["grid"], case["mode"]
        if case["global"]:
            assert digest(global_view) == case["global"], case["mode"]
        else:  # the public code loses a hairline; here it stays a pixel wide
            assert (global_view != PADDING_GREY).any()
        assert len(tiles) == plan.num_tiles
        if plan.num_tiles:
            assert digest(tiles) == case["tiles"]


@pytest.mark.parametrize("size", [(900, 333), (333, 900), (10, 10), (1024, 512), (1023, 511)])
def test_padding_equals_pillows(size: tuple[int, int]):
    image = make_image(*size)
    view, _ = prepare_views(image, plan_views(*size, Mode.BASE, PUBLIC), PUBLIC)
    np.testing.assert_array_equal(view, np.asarray(ImageOps.pad(image, (1024, 1024), color=(127, 127, 127))))


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 1)])
@pytest.mark.parametrize("config", [PUBLIC, NANO], ids=["public", "nano"])
def test_hairlines_have_views(size: tuple[int, int], config: GeometryConfig):
    image = Image.new("RGB", size, (255, 0, 0))
    plan = plan_views(*size, Mode.GUNDAM, config)
    view, tiles = prepare_views(image, plan, config)
    assert view.shape == (config.global_px, config.global_px, 3)
    assert tiles.shape == (plan.num_tiles, 640, 640, 3)
    assert (view == (255, 0, 0)).all(axis=-1).any()


def test_native_places_pixels_untouched_in_the_middle_of_the_grid():
    image = make_image(1200, 601)
    plan = plan_views(1200, 601, Mode.GUNDAM, NANO)
    _, tiles = prepare_views(image, plan, NANO)
    assert (plan.tile_columns, plan.tile_rows) == (2, 1)
    grid = np.concatenate(list(tiles), axis=1)
    top, left = 20, 40  # 39 / 2 rounds to the even neighbour, as in Pillow
    np.testing.assert_array_equal(grid[top : top + 601, left : left + 1200], np.asarray(image))
    grid[top : top + 601, left : left + 1200] = PADDING_GREY
    assert (grid == PADDING_GREY).all()


def test_native_global_view_of_a_small_image_is_its_pixels():
    image = make_image(100, 50)
    view, tiles = prepare_views(image, plan_views(100, 50, Mode.GUNDAM, NANO), NANO)
    assert len(tiles) == 0
    np.testing.assert_array_equal(view[295:345, 270:370], np.asarray(image))
    assert (view[:295] == PADDING_GREY).all()


def test_native_global_view_of_a_tiled_page_is_the_whole_page_shrunk():
    page = Image.new("RGB", (1280, 640), (255, 255, 255))
    view, _ = prepare_views(page, plan_views(1280, 640, Mode.GUNDAM, NANO), NANO)
    assert (view[160:480] == 255).all()
    assert (view[:160] == PADDING_GREY).all()
    assert (view[480:] == PADDING_GREY).all()


def test_tiles_are_in_reading_order():
    grid = np.zeros((4, 6, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            grid[row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] = row * 3 + column
    tiles = cut_tiles(grid, 2)
    assert [tile.min() for tile in tiles] == [tile.max() for tile in tiles] == [0, 1, 2, 3, 4, 5]


def test_the_image_is_left_as_it_was():
    image = make_image(640, 640)
    before = image.tobytes()
    plan = plan_views(640, 640, Mode.SMALL, PUBLIC)
    view, _ = prepare_views(image, plan, PUBLIC)
    view[:] = 0
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", [Mode.SMALL, Mode.BASE, Mode.GUNDAM])
@pytest.mark.parametrize("size", [(640, 640), (333, 900), (1240, 1754)])
def test_grey_pages_have_the_views_of_the_same_page_in_colours(size: tuple[int, int], mode: Mode):
    grey = make_image(*size).convert("L")
    plan = plan_views(*size, mode, PUBLIC)
    expected = prepare_views(grey.convert("RGB"), plan, PUBLIC)
    for found, wanted in zip(prepare_views(grey, plan, PUBLIC), expected, strict=True):
        assert found.shape == wanted.shape
        assert (found == wanted).all()
        assert without_copies(found).shape[-1] == 1


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P"])
def test_other_colour_modes_are_refused(mode: str):
    with pytest.raises(ValueError, match=f"not {mode}"):
        prepare_views(Image.new(mode, (9, 9)), plan_views(9, 9, Mode.BASE, PUBLIC), PUBLIC)
