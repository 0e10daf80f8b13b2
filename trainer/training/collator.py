"""From samples to a batch: image tokens, prompt, answer, end; only answer and end count in the loss.

Rows are padded on the right, which a causal decoder without a mask never sees. Images are passed as sample numbers
where their features are cached, as views where the encoder is trained.

Shape letters: B samples, L tokens, H and W pixels, C colours, T tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.loss import IGNORED_LABEL
from trainer.training.dataset import TrainingSample

INDICES = "indices"
"""Key of the samples' numbers in a batch."""
KEPT = "logits_to_keep"
"""Key of the number of last positions whose logits the loss needs."""


class Collator:
    """Makes batches, from the samples alone."""

    def __init__(
        self,
        before: Sequence[int],
        image_id: int,
        after: Sequence[int],
        ends: tuple[int, int],
        views: Callable[[TrainingSample], list[PageViews]] | None = None,
        multiple: int = 1,
    ) -> None:
        """Set the tokens around images and answers.

        Args:
            before: tokens before the images.
            image_id: placeholder for a vision token.
            after: the prompt's tokens after the images.
            ends: the end token and the padding token.
            views: makes a sample's views, where batches need pixels (the vision encoder is trained).
            multiple: lengths are padded to a multiple of this, so that many batches have the same shape.
        """
        self._before, self._image_id, self._after = list(before), image_id, list(after)
        self._eos_id, self._pad_id = ends
        self._views = views
        self._multiple = multiple

    def prompt_ids(self, sample: TrainingSample) -> list[int]:
        """Tokens before the answer."""
        return [*self._before, *[self._image_id] * sample.num_vision_tokens, *self._after]

    def __call__(self, items: Sequence[tuple[int, TrainingSample]]) -> dict[str, Any]:
        """Collate numbered samples into a batch.

        `input_ids` and `labels` are `[B, L]`, `indices` is `[B]`, and a count says how many last positions have labels;
        with `views`, the arguments of `image_features` are added.
        """
        prompts = [self.prompt_ids(sample) for _, sample in items]
        answers = [[*sample.answer_ids, self._eos_id] for _, sample in items]
        length = self._filled(max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)))
        input_ids = torch.full((len(items), length), self._pad_id)
        labels = torch.full((len(items), length), IGNORED_LABEL)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start, stop = len(prompt), len(prompt) + len(answer)
            input_ids[row, :stop] = torch.tensor(prompt + answer)
            labels[row, start:stop] = torch.tensor(answer)
        # The position before the first label predicts it.
        kept = min(self._filled(length - min(map(len, prompts)) + 1), length)
        batch: dict[str, Any] = {
            "input_ids": input_ids,
            "labels": labels,
            INDICES: torch.tensor([index for index, _ in items]),
            KEPT: kept,
        }
        if self._views is not None:
            batch |= image_arguments([self._views(sample) for _, sample in items])
        return batch

    def _filled(self, length: int) -> int:
        return -(-length // self._multiple) * self._multiple


def image_arguments(pages_of_samples: Sequence[Sequence[PageViews]]) -> dict[str, Any]:
    """Arguments of `image_features` for the pages of several samples, flattened; global views all have one size.

    `global_views_BHWC`, `tiles_THWC` (None without tiles) and `tile_grids_B2`.
    """
    pages = [page for pages in pages_of_samples for page in pages]
    tiles = [torch.as_tensor(page.tiles_THWC) for page in pages if page.plan.num_tiles]
    return {
        "global_views_BHWC": torch.stack([torch.as_tensor(page.global_view_HWC) for page in pages]),
        "tiles_THWC": torch.cat(tiles) if tiles else None,
        "tile_grids_B2": [[page.plan.tile_columns, page.plan.tile_rows] for page in pages],
    }
