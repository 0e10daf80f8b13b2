"""Makes views from an upright page on the device, bit for bit as `images.prepare_views` does.

Pillow's bicubic resampling in its own integers: weights are fixed-point numbers of 22 bits, computed in float64 on the
host and kept on the device for each pair of sizes; one side is resampled and rounded to 8 bits, then the other. Two
launches a canvas on CUDA; plain torch elsewhere. Nothing here waits for the device.

Shape letters: H and W pixels of the source, X pixels of the result along the resized side, C colours, T taps or tiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.kernels.reference.vision_resize import Canvas, Table, resample
from shared.deepseek_ocr.geometry import GeometryConfig, Placement, ViewPlan, place_global, place_tiles

PRECISION_BITS = 22
"""Of a weight: what 8 bits of a pixel and 2 of headroom leave of 32."""
BICUBIC_REACH = 2.0
"""Pixels to either side that the filter reaches at equal size."""
TABLES = 256
"""Pairs of sizes whose weights stay on a device; each takes 20 to 200 KB."""
ORDER_VARIES = int(PIL.__version__.split(".")[0]) >= 13
"""Whether the installed Pillow resamples a page that loses mostly height from top to bottom first.

Some releases of Pillow 12 do so in their own way for pages over a hundred times as high as wide; those differ a bit."""


class Resample(Protocol):
    """The operation that has a plain and a fused form."""

    def __call__(self, image_HWC: Tensor, table: Table, canvas: Canvas, bits: int, *, down: bool) -> Tensor:
        """See `resample`."""


def prepare_views_on_device(
    image_HWC: Tensor, plan: ViewPlan, config: GeometryConfig, operation: Resample | None = None
) -> tuple[Tensor, Tensor]:
    """Render the views of a page where the page is.

    Args:
        image_HWC: The upright page, uint8 RGB, of the size that was planned.
        plan: What `plan_views` said for that size.
        config: The geometry it was planned with.
        operation: How to resample; None: by the fused kernel on CUDA, in plain torch elsewhere.

    Returns:
        The global view, `[global_px, global_px, 3]`, and the tiles in reading order,
        `[num_tiles, tile_px, tile_px, 3]`; both uint8 RGB, on the image's device.

    Raises:
        ValueError: The image is not uint8 `[H, W, 3]`.
    """
    if image_HWC.dtype != torch.uint8 or image_HWC.ndim != 3 or image_HWC.shape[-1] != 3:
        raise ValueError(f"views are made from uint8 [H, W, 3], not {image_HWC.dtype} {list(image_HWC.shape)}")
    image_HWC = image_HWC.contiguous()
    operation = operation or _operation_for(image_HWC.device)
    height, width, _ = image_HWC.shape
    view_THWC = _render(image_HWC, place_global(width, height, plan, config), plan.global_px, operation)
    if not plan.num_tiles:
        return view_THWC[0], image_HWC.new_empty(0, plan.tile_px, plan.tile_px, 3)
    return view_THWC[0], _render(image_HWC, place_tiles(width, height, plan, config), plan.tile_px, operation)


def _render(image_HWC: Tensor, placement: Placement, tile_px: int, operation: Resample) -> Tensor:
    """The padded canvas with the page on it, cut into tiles: `[T, tile_px, tile_px, 3]`."""
    height, width, _ = image_HWC.shape
    wanted_height, wanted_width = placement.content_height_px, placement.content_width_px
    canvas = Canvas(
        height=placement.canvas_height_px,
        width=placement.canvas_width_px,
        tile_height=tile_px,
        tile_width=tile_px,
        top=placement.offset_y_px,
        left=placement.offset_x_px,
    )
    device = image_HWC.device
    across, down = _table(width, wanted_width, device), _table(height, wanted_height, device)
    if down_first(width, height, wanted_width, wanted_height):
        plain = Canvas(wanted_height, width, wanted_height, width)
        image_HWC = operation(image_HWC, down, plain, PRECISION_BITS, down=True)[0]
        return operation(image_HWC, across, canvas, PRECISION_BITS, down=False)
    if width != wanted_width:
        plain = Canvas(height, wanted_width, height, wanted_width)
        image_HWC = operation(image_HWC, across, plain, PRECISION_BITS, down=False)[0]
    return operation(image_HWC, down, canvas, PRECISION_BITS, down=True)


def down_first(width: int, height: int, wanted_width: int, wanted_height: int) -> bool:
    """Whether Pillow resamples columns before rows; the order shows in the last bit.

    Source:
        Pillow 13 does so for pages that lose more than twice as many rows as columns (its change 9549; the condition
        was found by comparing 2 800 random pairs of sizes), earlier ones never.
    """
    lost = height - wanted_height
    return ORDER_VARIES and width != wanted_width and lost > 0 and lost > 2 * (width - wanted_width)


def _operation_for(device: torch.device) -> Resample:
    if device.type == "cuda":
        from service.engine.kernels.triton import vision_resize

        return vision_resize.resample
    return resample


@lru_cache(maxsize=TABLES)
def _table(size: int, wanted: int, device: torch.device) -> Table:
    """`resample_table` on a device; sent through pinned memory, so that nothing waits."""
    tensors = [torch.from_numpy(array) for array in resample_table(size, wanted)]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    starts_X, weights_TX = (tensor.to(device, non_blocking=True) for tensor in tensors)
    return Table(starts_X=starts_X, weights_TX=weights_TX)


def resample_table(size: int, wanted: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Compute the contents of a `Table`.

    Args:
        size: pixels of the side.
        wanted: pixels of the resized side.

    Returns:
        The first pixel of each, `[X]`, and the weights from there on, `[T, X]`.

    Source:
        `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's `Resample.c`; every operation in its order, because
        the last bit of a sum decides how a weight rounds.
    """
    if size == wanted:  # Pillow leaves such a side alone
        return np.arange(wanted, dtype=np.int32), np.full((1, wanted), 1 << PRECISION_BITS, np.int32)
    scale = size / wanted
    stretch = max(scale, 1.0)
    reach = BICUBIC_REACH * stretch
    centres_X = (np.arange(wanted) + 0.5) * scale
    starts_X = np.maximum((centres_X - reach + 0.5).astype(np.int64), 0)  # cut towards zero, as C does
    ends_X = np.minimum((centres_X + reach + 0.5).astype(np.int64), size)
    taps_T1 = np.arange(int((ends_X - starts_X).max()))[:, None]
    weights_TX = _bicubic((taps_T1 + starts_X - centres_X + 0.5) * (1.0 / stretch))
    weights_TX = np.where(taps_T1 < ends_X - starts_X, weights_TX, 0.0)
    weights_TX = weights_TX / np.add.accumulate(weights_TX, axis=0)[-1]  # summed one after another
    fixed_TX = (np.where(weights_TX < 0, -0.5, 0.5) + weights_TX * (1 << PRECISION_BITS)).astype(np.int32)
    return starts_X.astype(np.int32), fixed_TX


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.5, its terms in Pillow's order."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
