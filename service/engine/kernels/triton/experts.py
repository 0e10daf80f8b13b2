"""Mixture of experts, Triton: each needed expert's weights are read once, whatever the number of tokens.

Owns `mixture` and `mixture_add`, and the choice between the two ways: pair by pair (`expert_pairs`), or sorted by
expert (`expert_tiles`). A token's result depends on its batch only through tile sizes, which follow the number of
tokens. Stateless; used by the engine's single thread.

Shape letters: T tokens, H hidden width, E experts, K experts per token, I expert width, J = 2 * I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.kernels.int8_rows import Weight, levels_of
from service.engine.kernels.triton.expert_pairs import PAIR_CONFIG, mix_pairs
from service.engine.kernels.triton.expert_tiles import mix_tiles, tile_config

MAX_PAIR_TOKENS = 1
"""With more tokens, experts are shared often enough that sorting pays: 2 tokens 34.3 us one by one at best and 31.5 us
sorted, 4 tokens 63.8 and 47.3 us. H200, 558e320."""


def mixture(x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Weight, down_EHI: Weight) -> Tensor:
    """See `reference.mixture`."""
    out_TH = torch.empty_like(x_TH)
    _mix(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, None, out_TH)
    return out_TH


def mixture_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    residual_TH: Tensor,
) -> None:
    """See `reference.mixture_add`."""
    _mix(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, residual_TH, residual_TH)


def _mix(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    residual_TH: Tensor | None,
    out_TH: Tensor,
) -> None:
    tokens = len(x_TH)
    arguments = (x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, residual_TH, out_TH)
    for tensor in (x_TH, weights_TK, experts_TK, *levels_of(gate_up_EJH), *levels_of(down_EHI), out_TH):
        assert tensor is None or tensor.is_contiguous(), "mixture needs contiguous tensors"
    if tokens == 0:
        return
    if tokens <= MAX_PAIR_TOKENS:
        mix_pairs(*arguments, PAIR_CONFIG)
    else:
        mix_tiles(*arguments, tile_config(x_TH, gate_up_EJH))
