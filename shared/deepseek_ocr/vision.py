"""Assembles the encoded views of a page into its sequence of embeddings.

Owns the order of vision tokens: tiles in reading order as one grid, then the global view, then the separator, with a
line-break embedding after each row. Knows nothing of text, or of how views are cut from an image.

Shape letters: V views, T tiles of a page, H and W pixels, C colours, N tokens of a view, D decoder width, L tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PIXEL_SCALE = 127.5
"""Maps 0..255 to -1..1: the published mean and deviation of 0.5."""


def normalise_views(views_VHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert pixels to the encoder's range and layout.

    Args:
        views_VHWC: uint8, RGB.
        dtype: of the encoder's weights.

    Returns:
        `[V, C, H, W]` in `[-1, 1]`, channels last in memory.

    Raises:
        ValueError: The pixels have another type or layout.
    """
    if views_VHWC.dtype != torch.uint8 or views_VHWC.ndim != 4 or views_VHWC.shape[-1] != 3:
        raise ValueError(f"views must be uint8 [V, H, W, 3], got {views_VHWC.dtype} {list(views_VHWC.shape)}")
    pixels = views_VHWC.permute(0, 3, 1, 2).float().div_(PIXEL_SCALE).sub_(1.0)
    return pixels.to(dtype)


def tile_grid(tokens_TND: Tensor, columns: int, rows: int) -> Tensor:
    """Arrange the tokens of all tiles as one grid over the page.

    Args:
        tokens_TND: tiles in reading order; the tokens of each form a square.
        columns: tiles across.
        rows: tiles down.

    Returns:
        `[rows * side, columns * side, D]`.

    Raises:
        ValueError: The number of tiles is not `columns * rows`, or a tile's tokens do not form a square.
    """
    tiles, tokens, width = tokens_TND.shape
    side = math.isqrt(tokens)
    if tiles != columns * rows or side * side != tokens:
        raise ValueError(f"{tiles} tiles of {tokens} tokens do not form a grid of {columns} x {rows} square tiles")
    grid = tokens_TND.view(rows, columns, side, side, width).transpose(1, 2)
    return grid.reshape(rows * side, columns * side, width)


def end_rows(grid_HWD: Tensor, line_break_D: Tensor) -> Tensor:
    """Add the line break after each row and flatten: `[H * (W + 1), D]`."""
    breaks = line_break_D.to(grid_HWD.dtype).expand(grid_HWD.shape[0], 1, -1)
    return torch.cat((grid_HWD, breaks), dim=1).flatten(0, 1)


def assemble_page(
    global_tokens_ND: Tensor,
    tile_tokens_TND: Tensor | None,
    columns: int,
    rows: int,
    *,
    line_break_D: Tensor,
    separator_D: Tensor,
) -> Tensor:
    """Join the tokens of a page's views in the order in which the decoder was trained.

    Args:
        global_tokens_ND: tokens of the global view.
        tile_tokens_TND: tokens of the tiles, None without tiles.
        columns: tiles across, 0 without tiles.
        rows: tiles down, 0 without tiles.
        line_break_D: embedding after each row of tokens.
        separator_D: embedding at the end of the page.

    Returns:
        `[L, D]`.

    Source:
        `DeepseekOCRModel.forward` of deepseek-ai/DeepSeek-OCR.
    """
    parts = []
    if tile_tokens_TND is not None and columns * rows:
        parts.append(end_rows(tile_grid(tile_tokens_TND, columns, rows), line_break_D))
    parts.append(end_rows(tile_grid(global_tokens_ND.unsqueeze(0), 1, 1), line_break_D))
    parts.append(separator_D.to(global_tokens_ND.dtype).unsqueeze(0))
    return torch.cat(parts)
