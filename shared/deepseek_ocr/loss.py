"""The training loss: cross entropy of each position's next token, at once or in pieces.

Logits have a value for every token of the vocabulary: 0.5 GiB in float32 for a thousand tokens of the public models,
and as much again for their gradient. In pieces, only one piece's logits are in memory; they are computed again for the
gradient.

Shape letters: B sequences, L tokens, D decoder width, V vocabulary, N positions of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED_LABEL = -100
"""Label of tokens that the loss ignores."""
PIECE_LOGITS = 2**27
"""Logits in a piece: a thousand tokens of the public models, or a whole batch with a small vocabulary. On an H100 with
DeepSeek-OCR-2's dimensions, four answers of 2048 tokens and pieces of 1024: 8.3 GiB instead of 18.6, and no slower
(docs/performance.md, training)."""


def next_token_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy of each position's next token, in float32.

    Args:
        logits: `[B, L, V]`.
        labels: `[B, L]`, not shifted; -100 for tokens that the loss ignores.
        num_items_in_batch: divisor; None: the number of labels that are not ignored.

    Returns:
        A scalar.
    """
    reduction = "mean" if num_items_in_batch is None else "sum"
    targets = labels[:, 1:].flatten().to(logits.device)
    loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED_LABEL, reduction=reduction
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def loss_in_pieces(
    hidden_BLD: Tensor,
    head: Callable[[Tensor], Tensor],
    vocab_size: int,
    labels_BL: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The same from hidden states, without having all logits in memory.

    Args:
        hidden_BLD: input of the head.
        head: from hidden states `[N, D]` to logits `[N, V]`.
        vocab_size: V, which decides how many tokens a piece has.
        labels_BL: not shifted; -100 for tokens that the loss ignores.
        num_items_in_batch: divisor; None: the number of labels that are not ignored.

    Returns:
        A scalar.
    """
    hidden_ND = hidden_BLD[:, :-1].flatten(0, 1)
    targets_N = labels_BL[:, 1:].flatten().to(hidden_BLD.device)

    def summed(hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = head(hidden_ND).float()
        return functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED_LABEL, reduction="sum")

    piece_tokens = max(PIECE_LOGITS // vocab_size, 1)
    if len(targets_N) <= piece_tokens:
        total = summed(hidden_ND, targets_N)
    else:
        pieces = zip(hidden_ND.split(piece_tokens), targets_N.split(piece_tokens), strict=True)
        sums = [checkpoint(summed, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
        total = torch.stack(sums).sum()
    divisor = (targets_N != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    return total / divisor
