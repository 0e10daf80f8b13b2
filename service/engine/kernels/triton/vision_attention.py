"""Triton attention of the first vision encoder: relative rows and columns added to the scores inside the kernel.

A score is q.k / sqrt(D) + q.Rh[row distance] + q.Rw[column distance]. Neither the scores nor the bias over pairs are
ever written; what each query's bias is per key row and per key column (14 + 14 or 64 + 64 numbers) comes from two small
products with the tables of distances, is turned from distances to positions by writing it to scratch memory and reading
it back within the same program, and then

- in a window of up to 16x16 it goes through the tensor cores once more, against a one-hot of each key's row and column,
- over a whole view it is added to blocks of keys made of whole grid rows, so that the bias of the column is the same
  for all blocks and the bias of the row is one number per query.

Tokens stay where the linear layer wrote them: windows are an addressing rule. Signatures and meaning are those of
`kernels.reference.vision`.

Shape letters: V views, H and W patches down and across, C channels, E = 3 * C, N heads, D head width, L = H * W,
K distances, M queries of a block.
"""

# ruff: noqa: ANN001, ANN202 - arguments of kernels are pointers and numbers of the language's own
# mypy: disable-error-code="no-untyped-def, import-not-found"

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import launch

WINDOW_SLOTS = 16
"""A window's rows and columns, filled up to a power of two."""
WINDOW_QUERIES, WINDOW_WARPS = 64, 4
"""Queries of a block within a window. H100, 8 views of 1024 px: 0.31 ms; with 128 or 8 warps 0.39 to 0.67 ms."""


@dataclass(frozen=True, slots=True)
class GridTiling:
    """How attention over a whole view is cut; powers of two, except `rows`."""

    queries: int
    keys: int
    rows: int
    """Grid rows in a block of keys."""
    warps: int
    stages: int


def grid_tiling(width: int) -> GridTiling:
    """Choose how to cut a view `width` patches wide: the block of keys that wastes least.

    H100, bf16, 12 heads of 64: 64 patches across 297 TFLOP/s (128 queries: 276, 128 keys: 258, 2 stages: 274, 8 warps:
    214 at most), 40 across 205 (blocks of one row: 178, 128 queries: 170 at most). Flash attention without any bias
    reaches 473 and 352 there.

    Args:
        width: patches across.

    Returns:
        The tiling.

    Raises:
        ValueError: The view is too wide for any.
    """
    if width > 128:
        raise ValueError(f"a view {width} patches wide is wider than a block of keys")
    keys = min((size for size in (64, 128) if size >= width), key=lambda size: (size % width / size, size))
    return GridTiling(queries=64, keys=keys, rows=keys // width, warps=4, stages=3)


@triton.jit(do_not_specialize=["height", "width", "windows_down", "windows_across"])
def _window_kernel(
    qkv, bias, rows, columns, scratch, out, height, width, windows_down, windows_across, scale,
    SIDE: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, SLOTS: tl.constexpr, DISTANCES: tl.constexpr,
    BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = HEADS * HEAD
    KEYS: tl.constexpr = SLOTS * SLOTS
    dtype = qkv.dtype.element_ty
    head = tl.program_id(0)
    window = tl.program_id(1)
    view = window // (windows_down * windows_across)
    top = window % (windows_down * windows_across) // windows_across * SIDE
    left = window % windows_across * SIDE
    d = tl.arange(0, HEAD)
    b = tl.arange(0, 2 * SLOTS)
    j = tl.arange(0, DISTANCES)

    n = tl.arange(0, KEYS)
    key_row, key_column = n // SLOTS, n % SLOTS
    used = (key_row < SIDE) & (key_column < SIDE)
    seen = used & (top + key_row < height) & (left + key_column < width)
    key_token = (view * height + top + key_row).to(tl.int64) * width + left + key_column
    key_offsets = key_token[:, None] * (3 * CHANNELS) + head * HEAD + d[None, :]
    beyond = (used & (seen == 0))[:, None]
    k = tl.load(qkv + CHANNELS + key_offsets, mask=seen[:, None], other=0.0)
    k = tl.where(beyond, tl.load(bias + CHANNELS + head * HEAD + d)[None, :], k)
    v = tl.load(qkv + 2 * CHANNELS + key_offsets, mask=seen[:, None], other=0.0)
    v = tl.where(beyond, tl.load(bias + 2 * CHANNELS + head * HEAD + d)[None, :], v)
    places = ((b[:, None] == key_row[None, :]) | (b[:, None] == key_column[None, :] + SLOTS)).to(dtype)

    table_mask = (j < 2 * SIDE - 1)[:, None]
    rows_KD = tl.load(rows + j[:, None] * HEAD + d[None, :], mask=table_mask, other=0.0)
    columns_KD = tl.load(columns + j[:, None] * HEAD + d[None, :], mask=table_mask, other=0.0)
    scratch += (window * HEADS + head).to(tl.int64) * (KEYS * 2 * SLOTS)

    for first in range(0, SIDE * SLOTS, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        row, column = m // SLOTS, m % SLOTS
        wanted = (row < SIDE) & (column < SIDE) & (top + row < height) & (left + column < width)
        token = (view * height + top + row).to(tl.int64) * width + left + column
        q = tl.load(qkv + token[:, None] * (3 * CHANNELS) + head * HEAD + d[None, :], mask=wanted[:, None], other=0.0)
        # The bias is divided by the scale, because it joins the scores before they are scaled.
        key = row[:, None] + (SIDE - 1) - j[None, :]
        found = tl.dot(q, tl.trans(rows_KD), input_precision=PRECISION) / scale
        places_M = scratch + m[:, None] * (2 * SLOTS)
        tl.store(places_M + key, found.to(dtype), mask=(key >= 0) & (key < SIDE))
        key = column[:, None] + (SIDE - 1) - j[None, :]
        found = tl.dot(q, tl.trans(columns_KD), input_precision=PRECISION) / scale
        tl.store(places_M + SLOTS + key, found.to(dtype), mask=(key >= 0) & (key < SIDE))
        tl.debug_barrier()
        # Slots without a key get a score whose weight is 0.
        found = tl.load(places_M + b[None, :], mask=(b % SLOTS < SIDE)[None, :], other=-30000.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = tl.dot(found, places, scores, input_precision=PRECISION)
        factor = scale * 1.4426950408889634
        highest = tl.max(scores, axis=1) * factor
        p = tl.exp2(scores * factor - highest[:, None])
        total = tl.sum(p, axis=1)
        attended = tl.dot(p.to(dtype), v, input_precision=PRECISION) / total[:, None]
        tl.store(out + token[:, None] * CHANNELS + head * HEAD + d[None, :], attended.to(dtype), mask=wanted[:, None])


@triton.jit
def _grid_kernel(  # noqa: PLR0915 - a function call would hide what stays in registers
    qkv, rows, columns, scratch_rows, scratch_columns, out, scale,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    DISTANCES_H: tl.constexpr, DISTANCES_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = HEADS * HEAD
    LENGTH: tl.constexpr = HEIGHT * WIDTH
    LOG2_E: tl.constexpr = 1.4426950408889634
    dtype = qkv.dtype.element_ty
    head, view = tl.program_id(1), tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, HEAD)
    wanted = m < LENGTH
    row, column = m // WIDTH, m % WIDTH
    qkv += view.to(tl.int64) * (LENGTH * 3 * CHANNELS) + head * HEAD
    scratch_rows += (view * HEADS + head).to(tl.int64) * (HEIGHT * LENGTH)
    scratch_columns += (view * HEADS + head).to(tl.int64) * (WIDTH * LENGTH)
    q = tl.load(qkv + m[:, None] * (3 * CHANNELS) + d[None, :], mask=wanted[:, None], other=0.0)

    j = tl.arange(0, DISTANCES_H)
    table = tl.load(rows + j[None, :] * HEAD + d[:, None], mask=(j < 2 * HEIGHT - 1)[None, :], other=0.0)
    key = row[:, None] + (HEIGHT - 1) - j[None, :]
    tl.store(
        scratch_rows + key * LENGTH + m[:, None],
        tl.dot(q, table, input_precision=PRECISION).to(dtype),
        mask=wanted[:, None] & (key >= 0) & (key < HEIGHT),
    )
    j = tl.arange(0, DISTANCES_W)
    table = tl.load(columns + j[None, :] * HEAD + d[:, None], mask=(j < 2 * WIDTH - 1)[None, :], other=0.0)
    key = column[:, None] + (WIDTH - 1) - j[None, :]
    tl.store(
        scratch_columns + m[:, None] * WIDTH + key,
        tl.dot(q, table, input_precision=PRECISION).to(dtype),
        mask=wanted[:, None] & (key >= 0) & (key < WIDTH),
    )
    tl.debug_barrier()

    in_rows = n < ROWS * WIDTH
    across = tl.load(
        scratch_columns + m[:, None] * WIDTH + (n % WIDTH)[None, :], mask=wanted[:, None] & in_rows[None, :], other=0.0
    ).to(tl.float32)
    across = tl.where(in_rows[None, :], across * LOG2_E, -1.0e30)
    factor = scale * LOG2_E
    highest = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    attended = tl.zeros([BLOCK_M, HEAD], tl.float32)
    for first_row in tl.range(0, HEIGHT, ROWS, num_stages=STAGES):
        token = first_row * WIDTH + n
        seen = (token < LENGTH)[:, None]
        k = tl.load(qkv + CHANNELS + token[:, None] * (3 * CHANNELS) + d[None, :], mask=seen, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor + across
        if ROWS == 1:
            down = tl.load(scratch_rows + first_row * LENGTH + m, mask=wanted, other=0.0).to(tl.float32) * LOG2_E
            higher = tl.maximum(highest, tl.max(scores, axis=1) + down)
            p = tl.exp2(scores - (higher - down)[:, None])
        else:
            for r in tl.static_range(ROWS):
                exists = first_row + r < HEIGHT
                down = tl.load(scratch_rows + (first_row + r) * LENGTH + m, mask=wanted & exists, other=0.0)
                down = tl.where(exists, down.to(tl.float32) * LOG2_E, -1.0e30)
                scores += tl.where((n // WIDTH == r)[None, :], down[:, None], 0.0)
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            p = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(p, axis=1)
        v = tl.load(qkv + 2 * CHANNELS + token[:, None] * (3 * CHANNELS) + d[None, :], mask=seen, other=0.0)
        attended = tl.dot(p.to(dtype), v, attended * fade[:, None], input_precision=PRECISION)
        highest = higher
    attended /= total[:, None]
    out += view.to(tl.int64) * (LENGTH * CHANNELS) + head * HEAD
    tl.store(out + m[:, None] * CHANNELS + d[None, :], attended.to(dtype), mask=wanted[:, None])


def window_attention(
    qkv_VHWE: Tensor, bias_E: Tensor, rows_KD: Tensor, columns_KD: Tensor, heads: int, side: int
) -> Tensor:
    """See `reference.vision.window_attention`; at most 16 patches a side, heads 16 to 128 wide (a power of two)."""
    views, height, width, _ = qkv_VHWE.shape
    head = _head_width(qkv_VHWE, heads)
    assert side <= WINDOW_SLOTS
    assert rows_KD.shape == columns_KD.shape == (2 * side - 1, head)
    down, across = -(-height // side), -(-width // side)
    windows = views * down * across
    scratch = qkv_VHWE.new_empty(windows * heads * WINDOW_SLOTS**2 * 2 * WINDOW_SLOTS)
    out_VHWC = qkv_VHWE.new_empty(views, height, width, heads * head)
    launch(
        _window_kernel,
        (heads, windows),
        qkv_VHWE,
        bias_E,
        rows_KD,
        columns_KD,
        scratch,
        out_VHWC,
        height,
        width,
        down,
        across,
        head**-0.5,
        SIDE=side,
        HEADS=heads,
        HEAD=head,
        SLOTS=WINDOW_SLOTS,
        DISTANCES=2 * WINDOW_SLOTS,
        BLOCK_M=WINDOW_QUERIES,
        PRECISION="ieee",
        num_warps=WINDOW_WARPS,
    )
    return out_VHWC


def grid_attention(
    qkv_VHWE: Tensor, rows_KD: Tensor, columns_KD: Tensor, heads: int, tiling: GridTiling | None = None
) -> Tensor:
    """See `reference.vision.grid_attention`; at most 128 patches across, heads 16 to 128 wide (a power of two)."""
    views, height, width, _ = qkv_VHWE.shape
    head = _head_width(qkv_VHWE, heads)
    assert rows_KD.shape == (2 * height - 1, head)
    assert columns_KD.shape == (2 * width - 1, head)
    tiling = tiling or grid_tiling(width)
    length = height * width
    scratch_rows = qkv_VHWE.new_empty(views * heads * length * height)
    scratch_columns = qkv_VHWE.new_empty(views * heads * length * width)
    out_VHWC = qkv_VHWE.new_empty(views, height, width, heads * head)
    launch(
        _grid_kernel,
        (triton.cdiv(length, tiling.queries), heads, views),
        qkv_VHWE,
        rows_KD,
        columns_KD,
        scratch_rows,
        scratch_columns,
        out_VHWC,
        head**-0.5,
        HEIGHT=height,
        WIDTH=width,
        HEADS=heads,
        HEAD=head,
        DISTANCES_H=max(16, triton.next_power_of_2(2 * height - 1)),
        DISTANCES_W=max(16, triton.next_power_of_2(2 * width - 1)),
        BLOCK_M=tiling.queries,
        BLOCK_N=tiling.keys,
        ROWS=tiling.rows,
        STAGES=tiling.stages,
        PRECISION="ieee",
        num_warps=tiling.warps,
    )
    return out_VHWC


def _head_width(qkv_VHWE: Tensor, heads: int) -> int:
    """Width of a head; the kernels take it as a power of two from 16 to 128."""
    head, rest = divmod(qkv_VHWE.shape[-1], 3 * heads)
    assert qkv_VHWE.is_contiguous()
    assert not rest
    assert head in (16, 32, 64, 128)
    return head


def takes(head: int, side: int) -> bool:
    """Whether the kernels take heads of this width and windows of this side."""
    return head in (16, 32, 64, 128) and side <= WINDOW_SLOTS
