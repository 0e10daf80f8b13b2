"""The interface of an evaluation's readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading


class ReaderError(RuntimeError):
    """A reader cannot work: its program, service or weights are missing. The message is for the user."""


class Reader(Protocol):
    """Reads pages; may read several at once, in any order."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def details(self) -> Mapping[str, str]:
        """What identifies the reader: version, checksum, device, options; no local folders."""

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages independently of each other.

        Args:
            samples: Pages to read; a reader uses image and layout, never the truth.

        Returns:
            Each index into `samples` once, with its reading, as soon as that is complete.

        Raises:
            ReaderError: The reader cannot work.
        """
