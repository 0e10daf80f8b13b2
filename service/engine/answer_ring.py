"""How much of an answer a cache keeps, for models whose answer tokens see only a window of it.

The answer's tokens go round in a ring of cells after the prompt's, so that a sequence never takes more cells than
prompt and ring, however long its answer. The ring is longer than the window because the second attempt at an answer
that loops takes tokens back, and needs the keys of those before them.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.answer_window import answer_window
from shared.deepseek_ocr.protocol import OcrModel


@dataclass(frozen=True, slots=True)
class AnswerRing:
    """Sizes, in tokens."""

    cells: int
    """Newest answer tokens that are kept: the window, and what a second attempt may take back."""
    window: int
    """Newest answer tokens that a token sees, itself included."""

    @staticmethod
    def of(model: OcrModel, rule: LoopRule) -> AnswerRing | None:
        """The ring for a model and a loop rule; None: its answer tokens see the whole answer."""
        window = answer_window(model)
        return AnswerRing(window + rule.max_rewind, window) if window else None

    def cell(self, prompt_tokens: int, position: int) -> int:
        """Where the token at a position goes, counted in the sequence's own cells."""
        if position < prompt_tokens:
            return position
        return prompt_tokens + (position - prompt_tokens) % self.cells
