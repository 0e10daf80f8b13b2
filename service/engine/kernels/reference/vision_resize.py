"""Pillow's resampling in plain torch: integer products along one side of an image, rounded to 8 bits.

`kernels.triton.vision_resize` computes the same in one launch.

Shape letters: H and W pixels of the source, S the resampled side and P the other, X pixels of the result along the
resized side, C colours, T taps or tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.deepseek_ocr.geometry import PADDING_GREY


@dataclass(frozen=True, slots=True)
class Table:
    """Which pixels of a side make up each pixel of the resized side, and how much each counts."""

    starts_X: Tensor
    """int32, the first of them."""
    weights_TX: Tensor
    """int32, of each pixel from there on, in units of 2 ** -PRECISION_BITS."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a resampled image is laid on, in pixels; sides are multiples of the tiles'."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    top: int = 0
    left: int = 0
    grey: int = PADDING_GREY


def resample(image_HWC: Tensor, table: Table, canvas: Canvas, bits: int, *, down: bool) -> Tensor:
    """Resample one side of an image, lay it on a canvas and cut that into tiles.

    Args:
        image_HWC: uint8.
        table: the weights.
        canvas: where it is laid and how it is cut.
        bits: fixed-point bits of a weight.
        down: resample the height; else the width.

    Returns:
        `[T, tile_height, tile_width, C]`, uint8, tiles in reading order.
    """
    image_SPC = image_HWC if down else image_HWC.transpose(0, 1)
    last, wanted = image_SPC.shape[0] - 1, len(table.starts_X)
    half = 1 << (bits - 1)
    total = torch.full((wanted, *image_SPC.shape[1:]), half, dtype=torch.int32, device=image_HWC.device)
    for tap, weights_X in enumerate(table.weights_TX):
        total += image_SPC[(table.starts_X + tap).clamp(max=last)].int() * weights_X[:, None, None]
    page = (total >> bits).clamp(0, 255).to(torch.uint8)
    if not down:
        page = page.transpose(0, 1)
    rows, columns = canvas.height, canvas.width
    laid_HWC = torch.full((rows, columns, 3), canvas.grey, dtype=torch.uint8, device=image_HWC.device)
    laid_HWC[canvas.top : canvas.top + page.shape[0], canvas.left : canvas.left + page.shape[1]] = page
    high, wide = canvas.tile_height, canvas.tile_width
    split = laid_HWC.view(rows // high, high, columns // wide, wide, 3).transpose(1, 2)
    return split.reshape(-1, high, wide, 3)
