"""From an image's size to the views that the encoder sees: arithmetic on sizes only.

Uses no pixel values, torch or Pillow, so that the cost of a page is known before the page is decoded.
The rules for the published checkpoints are those of the public repository deepseek-ai/DeepSeek-OCR
(`process/image_process.py`); `Tiling.NATIVE` is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from math import ceil, inf

SLACK = Fraction(9, 10)
"""NATIVE accepts a view or a grid that shows the image at this scale or more."""
PADDING_GREY = 127
"""Of what a page leaves of a view: the published mean 0.5 of each channel, rounded down as in the public code."""
NEAR_BEST = Fraction(95, 100)
"""If no grid reaches `SLACK`, NATIVE takes the fewest tiles that reach this share of the best scale."""


class Mode(StrEnum):
    """Resolution modes of the public model."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"
    GUNDAM = "gundam"


class Tiling(StrEnum):
    """How an image is placed on its tiles."""

    STRETCH = "stretch"
    """As published: the grid of the closest aspect ratio, the image resized to fill it."""
    NATIVE = "native"
    """The smallest grid that fits the image at its own size, padded with grey; shrinks the image only if none does."""


@dataclass(frozen=True, slots=True)
class GeometryConfig:
    """Sizes and rules of one checkpoint; the defaults are those of DeepSeek-OCR."""

    patch_px: int = 16
    downsample: int = 4
    tiny_px: int = 512
    small_px: int = 640
    base_px: int = 1024
    large_px: int = 1280
    tile_px: int = 640
    global_px: int = 1024
    min_tiles: int = 2
    max_tiles: int = 9
    squash: tuple[Mode, ...] = (Mode.TINY, Mode.SMALL)
    upscale: bool = True
    tiling: Tiling = Tiling.STRETCH
    line_breaks: bool = True
    """Whether a token ends each row of vision tokens; DeepSeek-OCR-2 has none."""
    modes: tuple[Mode, ...] = tuple(Mode)
    default_mode: Mode = Mode.GUNDAM
    reads_lines: bool = False
    """Whether a page of more than one view is better read as canvases of its lines (`shared.images.canvases`)."""


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """The views of one page: a global view and, if `num_tiles` > 0, a grid of tiles in reading order."""

    mode: Mode
    global_px: int
    tile_px: int
    tile_columns: int
    tile_rows: int
    num_vision_tokens: int

    @property
    def num_tiles(self) -> int:
        """Number of tiles, without the global view."""
        return self.tile_columns * self.tile_rows

    @property
    def num_views(self) -> int:
        """Number of views, the global one included."""
        return 1 + self.num_tiles


class UnsupportedModeError(ValueError):
    """The checkpoint does not support the mode; the message lists the modes it supports."""

    def __init__(self, mode: Mode, supported: tuple[Mode, ...]) -> None:
        super().__init__(mode, supported)  # both, so that it can be pickled by a worker process
        self.mode = mode
        self.supported = supported

    def __str__(self) -> str:
        return f"mode {self.mode!s} is not supported by this checkpoint; supported: {', '.join(self.supported)}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of a page on a canvas: resized to `content_*`, its corner at `offset_*`; the rest is padding.

    All sizes are pixels. The canvas is a global view, or the whole grid of tiles before it is cut.
    """

    page_width_px: int
    page_height_px: int
    canvas_width_px: int
    canvas_height_px: int
    content_width_px: int
    content_height_px: int
    offset_x_px: int
    offset_y_px: int


def plan_views(width_px: int, height_px: int, mode: Mode, config: GeometryConfig) -> ViewPlan:
    """Decide the views of a page from its size.

    Args:
        width_px: Width of the upright page.
        height_px: Height of the upright page.
        mode: One of `config.modes`.
        config: Sizes and rules of the checkpoint.

    Returns:
        The plan; the same input always gives the same plan.

    Raises:
        UnsupportedModeError: The checkpoint does not support `mode`.
        ValueError: A side is below one pixel.
    """
    if width_px < 1 or height_px < 1:
        raise ValueError(f"a page needs at least one pixel a side, not {width_px}x{height_px}")
    if mode not in config.modes:
        raise UnsupportedModeError(mode, config.modes)
    global_px = global_view_px(mode, config)
    columns, rows = choose_grid(width_px, height_px, config) if mode is Mode.GUNDAM else (0, 0)
    return ViewPlan(
        mode=mode,
        global_px=global_px,
        tile_px=config.tile_px,
        tile_columns=columns,
        tile_rows=rows,
        num_vision_tokens=count_vision_tokens(global_px, columns, rows, config),
    )


def global_view_px(mode: Mode, config: GeometryConfig) -> int:
    """Side of the global view in a mode."""
    sides = {
        Mode.TINY: config.tiny_px,
        Mode.SMALL: config.small_px,
        Mode.BASE: config.base_px,
        Mode.LARGE: config.large_px,
        Mode.GUNDAM: config.global_px,
    }
    return sides[mode]


def tokens_a_side(view_px: int, config: GeometryConfig) -> int:
    """Vision tokens along one side of a square view."""
    return ceil(view_px // config.patch_px / config.downsample)


def count_vision_tokens(global_px: int, columns: int, rows: int, config: GeometryConfig) -> int:
    """Length of a page's image part: rows of tokens, each with a line break, and one separator at the end.

    Tile rows span the whole grid, so a grid has one line break per token row, not one per tile.
    """
    side = tokens_a_side(global_px, config)
    tile_side = tokens_a_side(config.tile_px, config)
    row_end = int(config.line_breaks)
    return (side + row_end) * side + 1 + (tile_side * columns + row_end) * (tile_side * rows)


def choose_grid(width_px: int, height_px: int, config: GeometryConfig) -> tuple[int, int]:
    """Columns and rows of tiles for a page in gundam mode; (0, 0) if the global view is enough."""
    native = config.tiling is Tiling.NATIVE
    enough = Fraction(config.global_px) / SLACK if native else config.tile_px
    if max(width_px, height_px) <= enough:
        return (0, 0)
    grid = _native_grid(width_px, height_px, config) if native else _stretch_grid(width_px, height_px, config)
    return (0, 0) if grid == (1, 1) else grid


def _grids(config: GeometryConfig) -> list[tuple[int, int]]:
    """All grids with an allowed number of tiles; fewest tiles first, then fewest columns."""
    most = config.max_tiles
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return sorted((grid for grid in grids if grid[0] * grid[1] >= config.min_tiles), key=lambda grid: grid[0] * grid[1])


def _stretch_grid(width_px: int, height_px: int, config: GeometryConfig) -> tuple[int, int]:
    """Grid of the closest aspect ratio, as published.

    Of equally close grids the larger wins if the page covers more than half of it. Compares floats, as the public code
    does, so that ties are resolved as they were when the checkpoints were trained.
    """
    aspect = width_px / height_px
    best, best_difference = (1, 1), inf
    for columns, rows in _grids(config):
        difference = abs(aspect - columns / rows)
        covers_half = 2 * width_px * height_px > config.tile_px**2 * columns * rows
        if difference < best_difference or (difference == best_difference and covers_half):
            best, best_difference = (columns, rows), difference
    return best


def _native_grid(width_px: int, height_px: int, config: GeometryConfig) -> tuple[int, int]:
    """Fewest tiles that reach the scale `SLACK`; if none do, fewest tiles that nearly reach the largest scale."""
    grids = _grids(config)
    scales = {grid: _grid_scale(width_px, height_px, grid, config) for grid in grids}
    best = max(scales.values())
    wanted = SLACK if best >= SLACK else best * NEAR_BEST
    return min(
        (grid for grid in grids if scales[grid] >= wanted),
        key=lambda grid: (grid[0] * grid[1], -scales[grid]),
    )


def _grid_scale(width_px: int, height_px: int, grid: tuple[int, int], config: GeometryConfig) -> Fraction:
    """Scale at which a page fits a grid without being enlarged."""
    columns, rows = grid
    return min(Fraction(1), Fraction(columns * config.tile_px, width_px), Fraction(rows * config.tile_px, height_px))


def place_global(width_px: int, height_px: int, plan: ViewPlan, config: GeometryConfig) -> Placement:
    """Place the page on the global view."""
    if plan.mode in config.squash:
        return fill(width_px, height_px, plan.global_px, plan.global_px)
    return fit(width_px, height_px, plan.global_px, plan.global_px, upscale=config.upscale)


def place_tiles(width_px: int, height_px: int, plan: ViewPlan, config: GeometryConfig) -> Placement:
    """Place the page on the grid of tiles.

    Args:
        width_px: Width of the upright page.
        height_px: Height of the upright page.
        plan: From `plan_views` for this size.
        config: The geometry that the plan was made with.

    Returns:
        The placement on a canvas of `tile_columns` by `tile_rows` tiles.

    Raises:
        ValueError: The plan has no tiles.
    """
    if not plan.num_tiles:
        raise ValueError("the plan has no tiles")
    canvas = (plan.tile_columns * plan.tile_px, plan.tile_rows * plan.tile_px)
    if config.tiling is Tiling.STRETCH:
        return fill(width_px, height_px, *canvas)
    return fit(width_px, height_px, *canvas, upscale=config.upscale)


def fill(width_px: int, height_px: int, canvas_width_px: int, canvas_height_px: int) -> Placement:
    """Stretch the page over the whole canvas, whatever its aspect ratio."""
    return Placement(
        page_width_px=width_px,
        page_height_px=height_px,
        canvas_width_px=canvas_width_px,
        canvas_height_px=canvas_height_px,
        content_width_px=canvas_width_px,
        content_height_px=canvas_height_px,
        offset_x_px=0,
        offset_y_px=0,
    )


def fit(width_px: int, height_px: int, canvas_width_px: int, canvas_height_px: int, *, upscale: bool) -> Placement:
    """Centre the page on the canvas and keep its aspect ratio, with the rounding of Pillow's `ImageOps.pad`.

    Unlike in Pillow, a side never rounds to 0, so even a page one pixel wide has a place.
    """
    content_width, content_height = width_px, height_px
    if upscale or width_px > canvas_width_px or height_px > canvas_height_px:
        content_width, content_height = canvas_width_px, canvas_height_px
        if width_px / height_px > canvas_width_px / canvas_height_px:
            content_height = max(1, round(height_px / width_px * canvas_width_px))
        else:
            content_width = max(1, round(width_px / height_px * canvas_height_px))
    return Placement(
        page_width_px=width_px,
        page_height_px=height_px,
        canvas_width_px=canvas_width_px,
        canvas_height_px=canvas_height_px,
        content_width_px=content_width,
        content_height_px=content_height,
        offset_x_px=round((canvas_width_px - content_width) / 2),
        offset_y_px=round((canvas_height_px - content_height) / 2),
    )
