"""Whether a merged checkpoint reads as base and adapter do: the same held-out pages, text against text.

Error rates alone would not tell: a merge that lost half of a weak adapter still reads well. So the texts themselves are
compared, too. Knows readers and pages, not how a checkpoint is merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from shared.contract.text import ErrorCount, char_errors, total
from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading

MAX_DIFFERENCE: Final = 0.01
"""Edits between the two texts over the characters that the adapter reads: a rounded weight may change a letter."""
MAX_CER_LOSS: Final = 0.001


class MergeError(RuntimeError):
    """An adapter that cannot be merged, or a merged checkpoint that reads differently; `code` is stable."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy} [{code}]")
        self.code = code


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two readers of the same pages compare.

    Attributes:
        pages: number of pages.
        equal_pages: pages with the same text.
        difference: edits between the texts over the characters of base and adapter's.
        adapter_cer: error rate of base and adapter.
        merged_cer: error rate of the merged checkpoint.
    """

    pages: int
    equal_pages: int
    difference: float
    adapter_cer: float
    merged_cer: float

    def __str__(self) -> str:
        return (
            f"{self.equal_pages} of {self.pages} pages read the same, texts differ by {self.difference:.2%}; "
            f"CER {self.adapter_cer:.2%} with the adapter, {self.merged_cer:.2%} merged"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the merged checkpoint's record."""
        return asdict(self)


def compare_readings(samples: Sequence[Sample], adapted: Sequence[Reading], merged: Sequence[Reading]) -> Agreement:
    """Compare what base and adapter read with what the merged checkpoint reads, page by page.

    Args:
        samples: the pages.
        adapted: readings of base and adapter.
        merged: readings of the merged checkpoint.

    Returns:
        The comparison.
    """
    truths = [page.truth for page in samples]
    was, now = [each.text for each in adapted], [each.text for each in merged]
    return Agreement(
        pages=len(samples),
        equal_pages=sum(one == other for one, other in zip(was, now, strict=True)),
        difference=_errors(was, now).rate,
        adapter_cer=_errors(truths, was).rate,
        merged_cer=_errors(truths, now).rate,
    )


def _errors(truths: Sequence[str], texts: Sequence[str]) -> ErrorCount:
    return total(char_errors(truth, text) for truth, text in zip(truths, texts, strict=True))


def require_agreement(agreement: Agreement, max_difference: float, max_cer_loss: float) -> None:
    """Refuse a merged checkpoint that reads differently.

    Args:
        agreement: from `compare_readings`.
        max_difference: largest `difference`.
        max_cer_loss: largest rise of the error rate.

    Raises:
        MergeError: The texts differ more (`merge_differs`), or the merged checkpoint reads worse (`merge_worse`).
    """
    remedy = "try --dtype float32, or keep serving base and adapter"
    if agreement.difference > max_difference:
        raise MergeError(
            "merge_differs", f"the merged checkpoint does not read as base and adapter: {agreement}", remedy
        )
    if agreement.merged_cer - agreement.adapter_cer > max_cer_loss:
        raise MergeError("merge_worse", f"the merged checkpoint reads worse: {agreement}", remedy)
