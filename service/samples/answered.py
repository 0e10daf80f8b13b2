"""A document that was answered, as it is offered to be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.contract.prompts import Task
from shared.contract.samples import SampleReading


@dataclass(frozen=True, slots=True)
class AnsweredDocument:
    """Files, and what was read on their pages."""

    answer_id: str
    files: Sequence[bytes]
    """In order; their pages are numbered as those of one document."""
    selection: tuple[int, ...] | None
    """Pages of the one file that were read; None for all."""
    task: Task
    num_pages: int
    """Of the answer, with those that failed."""
    readings: Mapping[int, SampleReading]
    """By page number; without pages that failed."""

    @property
    def num_bytes(self) -> int:
        """Of memory, about: the files, and the texts that were read on their pages."""
        return sum(map(len, self.files)) + sum(len(reading.text) for reading in self.readings.values())
