import pickle
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.deepseek_ocr.geometry import (
    GeometryConfig,
    Mode,
    Placement,
    Tiling,
    UnsupportedModeError,
    ViewPlan,
    count_vision_tokens,
    fit,
    place_global,
    place_tiles,
    plan_views,
    tokens_a_side,
)

PUBLIC = GeometryConfig()
NANO = GeometryConfig(
    downsample=2,
    global_px=640,
    squash=(),
    upscale=False,
    tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
)

sides = st.one_of(st.integers(1, 4000), st.sampled_from([1, 639, 640, 641, 711, 712, 1422, 1423, 20000]))


def layout(plan: ViewPlan, config: GeometryConfig) -> str:
    """The image part drawn symbol by symbol: tiles, then the global view, then the separator."""
    side, tile_side = (tokens_a_side(px, config) for px in (plan.global_px, plan.tile_px))
    tiles = ("t" * tile_side * plan.tile_columns + "|") * (tile_side * plan.tile_rows)
    return tiles + ("g" * side + "|") * side + "#"


@pytest.mark.parametrize(
    ("mode", "visible", "in_all"),
    [(Mode.TINY, 64, 73), (Mode.SMALL, 100, 111), (Mode.BASE, 256, 273), (Mode.LARGE, 400, 421)],
)
def test_published_token_counts(mode: Mode, visible: int, in_all: int):
    plan = plan_views(2000, 3000, mode, PUBLIC)
    assert plan.num_vision_tokens == in_all
    assert layout(plan, PUBLIC).count("g") == visible
    assert plan.num_tiles == 0


def test_a_page_in_gundam_mode_is_a_view_and_tiles():
    plan = plan_views(1654, 2339, Mode.GUNDAM, PUBLIC)
    assert plan == ViewPlan(Mode.GUNDAM, 1024, 640, 2, 3, 903)
    assert plan.num_vision_tokens == 273 + (10 * 2 + 1) * (10 * 3)


@pytest.mark.parametrize("size", [(640, 640), (1, 1), (640, 1)])
def test_small_images_get_no_tiles_in_gundam_mode(size: tuple[int, int]):
    assert plan_views(*size, Mode.GUNDAM, PUBLIC).num_tiles == 0


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((641, 641), (2, 2)),  # 1x1 is no tiling, so square images start at four
        ((1250, 1000), (3, 2)),  # as close to 2:2 as to 3:2, and covers more than half of six tiles
        ((875, 700), (2, 2)),  # the same aspect, but six tiles would be mostly enlargement
        ((1999, 1), (9, 1)),
    ],
)
def test_public_grids(size: tuple[int, int], grid: tuple[int, int]):
    plan = plan_views(*size, Mode.GUNDAM, PUBLIC)
    assert (plan.tile_columns, plan.tile_rows) == grid


def test_unsupported_mode_names_the_supported_ones():
    with pytest.raises(UnsupportedModeError, match=r"mode large .* supported: small, gundam"):
        plan_views(10, 10, Mode.LARGE, NANO)


def test_unsupported_mode_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(UnsupportedModeError(Mode.TINY, NANO.modes)))
    assert (error.mode, error.supported) == (Mode.TINY, (Mode.SMALL, Mode.GUNDAM))
    assert "tiny" in str(error)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_empty_pages_are_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match="at least one pixel"):
        plan_views(*size, Mode.BASE, PUBLIC)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((711, 711), (0, 0)),  # 640 px still give 90 %
        ((712, 300), (2, 1)),
        ((712, 712), (2, 2)),
        ((1422, 600), (2, 1)),
        ((1423, 600), (3, 1)),
        ((1654, 2339), (3, 3)),  # nine tiles give 82 %, nothing smaller comes near
        ((3000, 5000), (2, 4)),  # eight tiles give as much as nine could
        ((2240, 3330), (2, 3)),  # nine tiles would give less than 5 % more than these six
        ((4990, 800), (6, 1)),
        ((1, 20000), (1, 9)),
    ],
)
def test_native_grids(size: tuple[int, int], grid: tuple[int, int]):
    plan = plan_views(*size, Mode.GUNDAM, NANO)
    assert (plan.tile_columns, plan.tile_rows) == grid


def test_native_takes_the_larger_scale_among_grids_of_as_many_tiles():
    config = GeometryConfig(global_px=640, tiling=Tiling.NATIVE, max_tiles=2)
    plans = [plan_views(*size, Mode.GUNDAM, config) for size in ((1000, 980), (980, 1000))]
    assert [(plan.tile_columns, plan.tile_rows) for plan in plans] == [(2, 1), (1, 2)]


def test_nano_spends_four_hundred_tokens_on_a_view():
    assert layout(plan_views(100, 100, Mode.GUNDAM, NANO), NANO).count("g") == 400


@given(sides, sides, st.sampled_from(Mode), st.sampled_from([PUBLIC, NANO]))
@example(1, 20000, Mode.GUNDAM, NANO)
@example(20000, 1, Mode.GUNDAM, PUBLIC)
def test_token_count_is_the_length_of_the_layout(width: int, height: int, mode: Mode, config: GeometryConfig):
    if mode not in config.modes:
        return
    plan = plan_views(width, height, mode, config)
    assert plan.num_vision_tokens == len(layout(plan, config))
    assert plan.num_vision_tokens == count_vision_tokens(plan.global_px, plan.tile_columns, plan.tile_rows, config)


@given(sides, sides, st.sampled_from([PUBLIC, NANO]), st.integers(2, 32))
def test_tiles_are_none_or_within_the_limits(width: int, height: int, config: GeometryConfig, max_tiles: int):
    limited = GeometryConfig(tiling=config.tiling, global_px=config.global_px, max_tiles=max_tiles)
    plan = plan_views(width, height, Mode.GUNDAM, limited)
    assert plan.num_tiles == 0 or limited.min_tiles <= plan.num_tiles <= max_tiles


@given(sides, sides)
def test_native_never_enlarges_and_keeps_the_aspect_ratio(width: int, height: int):
    plan = plan_views(width, height, Mode.GUNDAM, NANO)
    places = [place_global(width, height, plan, NANO)]
    if plan.num_tiles:
        places.append(place_tiles(width, height, plan, NANO))
    for place in places:
        assert place.content_width_px <= width
        assert place.content_height_px <= height
        scale = min(place.canvas_width_px / width, place.canvas_height_px / height, 1)
        assert place.content_width_px == pytest.approx(max(1, width * scale), abs=1)
        assert place.content_height_px == pytest.approx(max(1, height * scale), abs=1)


@given(sides, sides)
def test_native_shrinks_no_more_than_it_must(width: int, height: int):
    plan = plan_views(width, height, Mode.GUNDAM, NANO)
    grids = [(c, r) for c in range(1, 10) for r in range(1, 10) if 2 <= c * r <= 9]
    scales = {(c, r): min(Fraction(c * 640, width), Fraction(r * 640, height), Fraction(1)) for c, r in grids}
    if plan.num_tiles == 0:
        assert min(Fraction(640, width), Fraction(640, height)) >= Fraction(9, 10)
        return
    chosen = scales[plan.tile_columns, plan.tile_rows]
    assert chosen >= min(Fraction(9, 10), max(scales.values()) * Fraction(95, 100))
    cheaper = [scale for (c, r), scale in scales.items() if c * r < plan.num_tiles]
    assert all(scale < Fraction(9, 10) for scale in cheaper)


@given(sides, sides, st.integers(1, 1500), st.integers(1, 1500), st.booleans())
def test_content_lies_within_its_canvas(width: int, height: int, canvas_width: int, canvas_height: int, upscale: bool):
    place = fit(width, height, canvas_width, canvas_height, upscale=upscale)
    assert 1 <= place.content_width_px <= canvas_width
    assert 1 <= place.content_height_px <= canvas_height
    for offset, content, canvas in (
        (place.offset_x_px, place.content_width_px, canvas_width),
        (place.offset_y_px, place.content_height_px, canvas_height),
    ):
        assert 0 <= offset <= canvas - content
        assert abs(2 * offset - (canvas - content)) <= 1


def test_a_page_that_fits_is_not_enlarged_and_lies_in_the_middle():
    assert fit(100, 50, 640, 640, upscale=False) == Placement(100, 50, 640, 640, 100, 50, 270, 295)


def test_placing_tiles_without_tiles_is_an_error():
    plan = plan_views(10, 10, Mode.GUNDAM, PUBLIC)
    with pytest.raises(ValueError, match="no tiles"):
        place_tiles(10, 10, plan, PUBLIC)
