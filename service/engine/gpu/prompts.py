"""Prompts laid end to end: the numbers that a prefill needs, made on the host and copied at once.

Owns their layout in one vector, with room for padding, so that a captured prefill finds everything in its place. Knows
no model. Used by the engine's single thread.

Shape letters: T tokens of all prompts, R prompts, I image tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts end to end, on the device.

    Attributes:
        ids_T: int64.
        positions_T: int32.
        cells_T: int64, where each token's keys go; -1: nowhere.
        sources_T: int64, which of the features replaces a token; -1: none.
        features_IH: Vision tokens of all prompts; at least one row.
        last_R: int64, each prompt's last token.
        starts: int32, where each prompt begins, and the end of the last; then the padding's end, where there is any.
        max_length: Tokens of the longest, or more.
        adapters_T: int32, each token's adapter, -1: none; None: no prompt has one.
    """

    ids_T: Tensor
    positions_T: Tensor
    cells_T: Tensor
    sources_T: Tensor
    features_IH: Tensor
    last_R: Tensor
    starts: Tensor
    max_length: int
    adapters_T: Tensor | None = None

    @classmethod
    def unpack(
        cls,
        numbers: Tensor,
        num_tokens: int,
        num_prompts: int,
        features_IH: Tensor,
        max_length: int,
        *,
        has_adapters: bool = False,
    ) -> PromptBatch:
        """Name the parts of a vector that `lay_out` made and somebody copied to the device."""
        four_T, starts = 4 * num_tokens, 4 * num_tokens + num_prompts
        end = len(numbers) - num_tokens if has_adapters else len(numbers)
        ids_T, cells_T, sources_T, positions_T = numbers[:four_T].split(num_tokens)
        return cls(
            ids_T=ids_T,
            positions_T=positions_T.int(),
            cells_T=cells_T,
            sources_T=sources_T,
            features_IH=features_IH,
            last_R=numbers[four_T:starts],
            starts=numbers[starts:end].int(),
            max_length=max_length,
            adapters_T=numbers[end:].int() if has_adapters else None,
        )


def lay_out(
    prompts: Sequence[Sequence[int]],
    cells: Sequence[NDArray[np.int64]],
    image_id: int,
    *,
    num_tokens: int | None = None,
    num_prompts: int | None = None,
    adapters: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Make the numbers of a batch.

    Padding tokens form a sequence of their own at position 0, whose keys are not stored, since there may be
    more of them than positions; prompts that are not there begin and end where it begins, and their last token is any.

    Args:
        prompts: Ids of each; `image_id` wherever a vision token goes.
        cells: Where each prompt's keys go.
        image_id: Of image tokens.
        num_tokens: T; None: as many as there are, and no padding.
        num_prompts: R; None: as many as there are.
        adapters: Of each prompt; None: they are left out.

    Returns:
        For `PromptBatch.unpack`.
    """
    lengths = np.array([len(ids) for ids in prompts])
    total = int(lengths.sum())
    padding = (num_tokens or total) - total
    missing = (num_prompts or len(prompts)) - len(prompts)
    ids = np.concatenate([*(np.asarray(ids, np.int64) for ids in prompts), np.zeros(padding, np.int64)])
    is_image = ids == image_id
    ends = lengths.cumsum()
    return np.concatenate(
        [
            ids,
            *cells,
            np.full(padding, -1),
            np.where(is_image, is_image.cumsum() - 1, -1),
            *(np.arange(length) for length in lengths),
            np.zeros(padding, np.int64),
            ends - 1,
            np.zeros(missing, np.int64),
            [0],
            ends,
            np.full(missing, total),
            [] if num_tokens is None else [num_tokens],
            [] if adapters is None else np.repeat([*adapters, -1], [*lengths, padding]),
        ]
    ).astype(np.int64)
