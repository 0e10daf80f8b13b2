"""A Triton kernel of Pillow's resampling: integer products along one side of an image, rounded to 8 bits.

The result is laid on a padded canvas, and that is cut into tiles, while it is written. Signature and meaning are those
of `kernels.reference.vision_resize`.

Shape letters: H and W pixels of the source, X pixels of the result along the resized side, C colours, T taps or tiles.
"""

# ruff: noqa: ANN001, ANN202 - arguments of kernels are pointers and numbers of the language's own
# mypy: disable-error-code="no-untyped-def, import-not-found"

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import launch

if TYPE_CHECKING:
    from service.engine.kernels.reference.vision_resize import Canvas, Table

ROWS, BLOCK = 4, 256
"""Rows and bytes of a row that one program makes. Views of 640 x 640 and 1240 x 1754 pixels take 27 and 109 us (8 rows:
45 and 148; other rows and blocks 114 at least). H200, de9a6fa."""


@triton.jit(do_not_specialize=[
    "height", "width", "wanted", "taps", "left", "top", "canvas_height", "canvas_width", "tile_height", "tile_width"
])  # fmt: skip
def _resample_kernel(
    image, starts, weights, out, height, width, wanted, taps, left, top, canvas_height, canvas_width, tile_height,
    tile_width, DOWN: tl.constexpr, GREY: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    canvas_y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    canvas_x, colour = e // 3, e % 3
    y, x = canvas_y - top, canvas_x - left
    real_y = (y >= 0) & (y < (wanted if DOWN else height))
    real_x = (x >= 0) & (x < (width if DOWN else wanted))
    mask = real_y[:, None] & real_x[None, :]
    total = tl.full([ROWS, BLOCK], 1 << (BITS - 1), tl.int32)
    if DOWN:
        start = tl.load(starts + y, mask=real_y, other=0)
        for tap in range(taps):
            weight = tl.load(weights + tap * wanted + y, mask=real_y, other=0)
            row = tl.minimum(start + tap, height - 1).to(tl.int64) * (width * 3)
            pixel = tl.load(image + row[:, None] + (x * 3 + colour)[None, :], mask=mask, other=0)
            total += pixel.to(tl.int32) * weight[:, None]
    else:
        start = tl.load(starts + x, mask=real_x, other=0)
        row = y.to(tl.int64) * (width * 3)
        for tap in range(taps):
            weight = tl.load(weights + tap * wanted + x, mask=real_x, other=0)
            column = tl.minimum(start + tap, width - 1) * 3 + colour
            pixel = tl.load(image + row[:, None] + column[None, :], mask=mask, other=0)
            total += pixel.to(tl.int32) * weight[None, :]
    value = tl.where(mask, tl.minimum(tl.maximum(total >> BITS, 0), 255), GREY).to(tl.uint8)
    tile = (canvas_y // tile_height)[:, None] * (canvas_width // tile_width) + (canvas_x // tile_width)[None, :]
    line = tile.to(tl.int64) * tile_height + (canvas_y % tile_height)[:, None]
    offsets = (line * tile_width + (canvas_x % tile_width)[None, :]) * 3 + colour[None, :]
    tl.store(out + offsets, value, mask=(canvas_y < canvas_height)[:, None] & (canvas_x < canvas_width)[None, :])


def resample(image_HWC: Tensor, table: Table, canvas: Canvas, bits: int, *, down: bool) -> Tensor:
    """See `resize.resample`; `image_HWC` contiguous."""
    height, width, _ = image_HWC.shape
    taps, wanted = table.weights_TX.shape
    assert image_HWC.is_contiguous()
    tiles = (canvas.height // canvas.tile_height) * (canvas.width // canvas.tile_width)
    out_THWC = image_HWC.new_empty(tiles, canvas.tile_height, canvas.tile_width, 3)
    launch(
        _resample_kernel,
        (triton.cdiv(canvas.width * 3, BLOCK), triton.cdiv(canvas.height, ROWS)),
        image_HWC,
        table.starts_X,
        table.weights_TX,
        out_THWC,
        height,
        width,
        wanted,
        taps,
        canvas.left,
        canvas.top,
        canvas.height,
        canvas.width,
        canvas.tile_height,
        canvas.tile_width,
        DOWN=down,
        GREY=canvas.grey,
        BITS=bits,
        ROWS=ROWS,
        BLOCK=BLOCK,
    )
    return out_THWC
