"""From an image's size to the views that the encoder sees: integer arithmetic alone.

Knows nothing of pixels, torch or Pillow, so that admission can price a page before anybody decodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """Resolution modes of the public model."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"
    GUNDAM = "gundam"


class Tiling(StrEnum):
    """How an image comes onto its tiles."""

    STRETCH = "stretch"
    """As published: the grid of the closest aspect ratio, the image resized to fill it."""
    NATIVE = "native"
    """The smallest grid that holds the image at its own size, padded with grey; shrunk only when none does."""


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
    modes: tuple[Mode, ...] = tuple(Mode)
    default_mode: Mode = Mode.GUNDAM


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What one page turns into: a global view and, when `num_tiles` > 0, a grid of tiles in reading order."""

    mode: Mode
    global_px: int
    tile_px: int
    tile_columns: int
    tile_rows: int
    num_vision_tokens: int

    @property
    def num_tiles(self) -> int:
        """Tiles beside the global view."""
        return self.tile_columns * self.tile_rows
