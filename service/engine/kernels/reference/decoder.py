"""The engine's kernels in plain torch: what each function means, and how a CPU computes it.

Lists the decoder's operations; `kernels.triton.decoder` offers the same names and signatures and is tested against
them. Some operations combine others because a GPU computes them in one launch (`norm_linear`, `linear_add`,
`norm_route`, `mixture_add`, `decode_attention`, `begin_step`): a decode step's layer is `norm_linear`,
`decode_attention`, `linear_add`, `norm_route`, `mixture_add`. A dense MLP is a mixture of one expert. Weights are
tensors or 8-bit rows (`int8_rows`), which mean the tensor they dequantise to. Stateless, safe in any thread.

Shape letters: B rows, H hidden width, V vocabulary, S slots, X blocks of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.answer_ring import AnswerRing
from service.engine.gpu.state import AnswerState
from service.engine.kernels.reference.attention import (
    decode_attention,
    paged_attention,
    prefill_attention,
    rotate_and_store,
)
from service.engine.kernels.reference.experts import (
    mixture,
    mixture_add,
    mixture_lora,
    mixture_lora_add,
    norm_route,
    route,
)
from service.engine.kernels.reference.linear import (
    add_rms_norm,
    gated,
    linear,
    linear_add,
    lora_add,
    norm_linear,
    rms_norm,
)
from service.engine.kernels.reference.sampler import choose

__all__ = [
    "add_rms_norm",
    "begin_step",
    "choose",
    "decode_attention",
    "gated",
    "linear",
    "linear_add",
    "lora_add",
    "mixture",
    "mixture_add",
    "mixture_lora",
    "mixture_lora_add",
    "norm_linear",
    "norm_route",
    "paged_attention",
    "prefill_attention",
    "rms_norm",
    "rotate_and_store",
    "route",
]


def begin_step(
    slots_B: Tensor,
    state: AnswerState,
    embeddings_VH: Tensor,
    tables_SX: Tensor,
    block_tokens: int,
    ring: AnswerRing | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a decode step reads of the state: the newest tokens' embeddings and where they belong.

    Args:
        slots_B: int64.
        state: Of the slots.
        embeddings_VH: Of the vocabulary.
        tables_SX: int32, each slot's blocks.
        block_tokens: Tokens of a block.
        ring: Where the answer's tokens go round; None: nowhere.

    Returns:
        Embeddings `[B, H]`, positions `[B]` int32, lengths `[B]` int32 (tokens that the new one sees, itself included;
        0 where a slot is done), cells `[B]` int64 (-1 where a slot is done), tables `[B, X]` int32.
    """
    positions_B, done_B, tables_BX = state.position_S[slots_B], state.done_S[slots_B], tables_SX[slots_B]
    places_B, lengths_B = positions_B, positions_B + 1
    if ring:
        prompts_B = state.prompt_S[slots_B]
        newest_B = positions_B - prompts_B
        places_B = torch.where(newest_B < 0, positions_B, prompts_B + newest_B % ring.cells)
        lengths_B = torch.minimum(lengths_B, prompts_B + ring.window)
    block_B = tables_BX.gather(1, (places_B // block_tokens).long().unsqueeze(1).clamp(max=tables_BX.shape[1] - 1))
    cells_B = block_B[:, 0].long() * block_tokens + places_B % block_tokens
    lengths_B = torch.where(done_B, 0, lengths_B).int()
    return embeddings_VH[state.token_S[slots_B]], positions_B, lengths_B, cells_B.masked_fill(done_B, -1), tables_BX
