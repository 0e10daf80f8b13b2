"""Checks during training: held-out pages read by the model in training, scored as in an evaluation.

A falling loss says little about reading: with the truth as input, a model never loses its place. Knows neither loop nor
files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.evaluation.scores import Reading, score_page, score_tier
from trainer.reading.generation import Generated, generate_from_features
from trainer.training.collator import Collator
from trainer.training.dataset import TrainingSet
from trainer.training.features import CachedEncoder

if TYPE_CHECKING:
    from shared.deepseek_ocr.tokenizer import OcrTokenizer

FIGURES = ("cer", "cer_capped", "wer", "exact_ratio", "unfinished_ratio")
MOST_NEW_TOKENS = 4096


def longest_answer(longest_known: int) -> int:
    """Limit of an answer's tokens where the longest known one has so many."""
    return min(2 * longest_known + 16, MOST_NEW_TOKENS)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pages that are read.

    Attributes:
        name: prefix of the figures' names; empty for the pages that decide.
        samples: the pages.
        encoder: gives their features; cached where they never change.
    """

    name: str
    samples: TrainingSet
    encoder: CachedEncoder


@dataclass(frozen=True, slots=True)
class Checker:
    """Reads held-out pages.

    Attributes:
        sets: pages to read, those that decide first.
        tokenizer: of the model.
        collator: knows the prompt.
        max_new_tokens: longest answer; None for twice the longest known one of a set.
        batch_size: pages read together.
        device: where the model is.
    """

    sets: Sequence[HeldOut]
    tokenizer: OcrTokenizer
    collator: Collator
    max_new_tokens: int | None
    batch_size: int
    device: torch.device

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Read all held-out pages with the base model and its adapter.

        Figures of every set are `cer`, `cer_capped`, `wer`, `exact_ratio` and `unfinished_ratio`, prefixed with the
        set's name where it has one.
        """
        figures: dict[str, float] = {}
        for held_out in self.sets:
            score = score_tier([score_page(truth, read) for truth, read in self._read(model, held_out)])
            prefix = f"{held_out.name}_" if held_out.name else ""
            figures |= {f"{prefix}{name}": float(getattr(score, name)) for name in FIGURES}
        return figures

    def _read(self, model: Any, held_out: HeldOut) -> list[tuple[str, Reading]]:
        samples = held_out.samples
        generated = self._generate(model, held_out, self.batch_size)
        return [
            (sample.text, Reading(answer.text, 0.0, answer.ended))
            for sample, answer in zip(samples, generated, strict=True)
        ]

    def _generate(self, model: Any, held_out: HeldOut, batch_size: int) -> list[Generated]:
        longest = max(len(sample.answer_ids) for sample in held_out.samples)
        try:
            return generate_from_features(
                model,
                self.tokenizer,
                [self.collator.prompt_ids(sample) for sample in held_out.samples],
                self._features_of(held_out),
                self.max_new_tokens or longest_answer(longest),
                self.device,
                batch_size,
            )
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # Outside of the handler, which keeps references to everything that the failed attempt allocated.
        torch.cuda.empty_cache()
        return self._generate(model, held_out, batch_size // 2)

    def _features_of(self, held_out: HeldOut) -> Callable[[int], Tensor]:
        return lambda index: held_out.encoder.features([index], self.device)[0]
