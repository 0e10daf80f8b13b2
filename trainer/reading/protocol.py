"""What an evaluation asks of whoever reads pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading


class ReaderError(RuntimeError):
    """A reader that cannot read at all: missing program, service or weights. The message is for its user."""


class Reader(Protocol):
    """Reads pages; may read several at once, in any order."""

    @property
    def name(self) -> str:
        """How tables call it."""

    @property
    def details(self) -> Mapping[str, str]:
        """What makes it: version, checksum, device, options. No folder of this machine."""

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages, which share nothing but the call.

        Args:
            samples: Pages to read; a reader looks at image and layout, never at the truth.

        Returns:
            Each index into `samples` once, with its reading, as soon as it is there.

        Raises:
            ReaderError: The reader cannot work.
        """
