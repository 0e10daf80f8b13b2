"""The first kernel of a decode step, Triton: one program per row gathers its inputs from the device's state.

Owns `begin_step`. Used by the engine's single thread.

Shape letters: B rows, H hidden width, V vocabulary, S slots, X blocks of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.answer_ring import AnswerRing
from service.engine.gpu.state import AnswerState
from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs

_NUM_WARPS = 4
"""1 and 256 rows 2.4 and 2.9 us (others 2.4 to 3.2 and 3.1 to 4.1). H200, de9a6fa."""


@triton.jit
def _begin(
    slots: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    prompts: tl.tensor,
    dones: tl.tensor,
    embeddings: tl.tensor,
    tables: tl.tensor,
    x: tl.tensor,
    row_positions: tl.tensor,
    lengths: tl.tensor,
    cells: tl.tensor,
    row_tables: tl.tensor,
    table_width: tl.tensor,
    WIDTH: tl.constexpr,
    WIDTH_POWER: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RING: tl.constexpr,
    WINDOW: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[rows]`; `RING` is 0 without one."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    position = tl.load(positions + slot)
    done = tl.load(dones + slot) != 0
    place = position
    length = position + 1
    if RING > 0:
        prompt = tl.load(prompts + slot)
        place = tl.where(position < prompt, position, prompt + (position - prompt) % RING)
        length = tl.minimum(length, prompt + WINDOW)
    tables += slot * table_width
    block = tl.load(tables + tl.minimum(place // BLOCK, table_width - 1)).to(tl.int64)
    tl.store(row_positions + row, position)
    tl.store(lengths + row, tl.where(done, 0, length))
    tl.store(cells + row, tl.where(done, -1, block * BLOCK + place % BLOCK))
    for start in range(0, table_width, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = column < table_width
        tl.store(row_tables + row * table_width + column, tl.load(tables + column, inside), inside)
    column = tl.arange(0, WIDTH_POWER)
    inside = column < WIDTH
    token = tl.load(tokens + slot)
    tl.store(x + row * WIDTH + column, tl.load(embeddings + token * WIDTH + column, inside), inside)


def begin_step(
    slots_B: Tensor,
    state: AnswerState,
    embeddings_VH: Tensor,
    tables_SX: Tensor,
    block_tokens: int,
    ring: AnswerRing | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `reference.begin_step`."""
    assert embeddings_VH.is_contiguous()
    assert tables_SX.is_contiguous()
    rows, width, device = len(slots_B), embeddings_VH.shape[1], slots_B.device
    x_BH = torch.empty(rows, width, dtype=embeddings_VH.dtype, device=device)
    positions_B, lengths_B = (torch.empty(rows, dtype=torch.int32, device=device) for _ in range(2))
    cells_B = torch.empty(rows, dtype=torch.int64, device=device)
    tables_BX = torch.empty(rows, tables_SX.shape[1], dtype=torch.int32, device=device)
    is_early = early(device, rows)
    if rows:
        launch(
            _begin, (rows,),
            slots_B, state.token_S, state.position_S, state.prompt_S, state.done_S, embeddings_VH, tables_SX, x_BH,
            positions_B, lengths_B, cells_B, tables_BX, tables_SX.shape[1],
            WIDTH=width, WIDTH_POWER=triton.next_power_of_2(width), BLOCK=block_tokens, CHUNK=128,
            RING=ring.cells if ring else 0, WINDOW=ring.window if ring else 0, EARLY=is_early,
            **launch_options(_NUM_WARPS, 1, is_early),
        )  # fmt: skip
    return x_BH, positions_B, lengths_B, cells_B, tables_BX
