"""Drawing a token at a temperature, in plain torch: greedy choice among scores with noise of a seed.

Owns the rule of every runner; the Triton kernel in `kernels/triton/sampler.py` computes the same. The greatest of
logits over temperature plus standard Gumbel noise is a draw from the softmax at that temperature. The noise is a
function of seed, answer tokens so far and token alone, so neither neighbours nor a row's place change what is drawn.
Knows no answers and no slots.

Shape letters: B rows, V vocabulary, K most probable tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-6
"""Below it a draw is as good as greedy, and quotients would leave float32."""
_MASK_32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Draw:
    """How a row that is not greedy chooses its next token."""

    temperature: float
    """Above 0."""
    seed: int
    """0 to 2**63 - 1."""
    count: int
    """Answer tokens so far."""


def draw_scores(scores_BV: Tensor, temperature_B1: Tensor, seed_B1: Tensor, count_B1: Tensor) -> Tensor:
    """Scores whose greatest is the token drawn.

    Args:
        scores_BV: Logits in float32; minus infinity is never drawn.
        temperature_B1: float32, above 0; what other rows come to means nothing.
        seed_B1: int64.
        count_B1: Answer tokens so far.

    Returns:
        float32, `[B, V]`.
    """
    tokens_V = torch.arange(scores_BV.shape[1], device=scores_BV.device)
    bits_BV = philox(seed_B1, tokens_V[None], count_B1.long())
    # 23 bits and a half: neither 0 nor 1, whose logarithms have none themselves.
    uniform_BV = ((bits_BV >> 9).float() + 0.5) * 2.0**-23
    return scores_BV / temperature_B1.clamp(min=MIN_TEMPERATURE) - torch.log(-torch.log(uniform_BV))


def most_probable(logits_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most probable tokens of each row, at temperature 1 and before bans.

    Args:
        logits_BV: Of any float dtype; computed in float32.
        count: How many; all tokens if there are fewer.

    Returns:
        Ids, int64, and natural logarithms of their probabilities, float32: `[B, count]` each, falling.
    """
    wide_BV = logits_BV.float()
    top_BK, ids_BK = wide_BV.topk(min(count, wide_BV.shape[1]), dim=-1)
    return ids_BK, top_BK - wide_BV.logsumexp(dim=-1, keepdim=True)


def philox(seed: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The first 32 random bits of Philox 4x32 with 10 rounds for the counter (first, second, 0, 0).

    Args:
        seed: int64, both halves of the key.
        first: int64 below 2**32.
        second: int64 below 2**32.

    Returns:
        int64 below 2**32, of the broadcast shape.

    Source:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), Random123's constants.
    """
    key0, key1 = seed & _MASK_32, (seed >> 32) & _MASK_32
    c0, c1 = first, second
    c2 = c3 = torch.zeros_like(first)
    for _ in range(10):
        # Products wrap at 64 bits, which keeps all of theirs; the shift's sign bits are cut off.
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((right >> 32) & _MASK_32) ^ c1 ^ key0,
            right & _MASK_32,
            ((left >> 32) & _MASK_32) ^ c3 ^ key1,
            left & _MASK_32,
        )
        key0, key1 = (key0 + 0x9E3779B9) & _MASK_32, (key1 + 0xBB67AE85) & _MASK_32
    return c0
