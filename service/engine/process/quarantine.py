"""Pages that were in work when the engine died, by a hash of their pixels.

A page that was there at one death is a suspect, and is read alone. One that was there at two, the second time alone, is
refused for a stated time: its sender was told to send it again, so it would end the engine again. Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import chain

from shared.deepseek_ocr.forms import PreparedPage

MAX_REMEMBERED_PAGES = 4096
"""Of each kind, newest last; 32 bytes a page."""


def digest_of(pages: Iterable[PreparedPage]) -> bytes:
    """SHA-256 of the pixels of pages that are read together; takes a millisecond a page, so not for the event loop."""
    digest = hashlib.sha256()
    for array in chain.from_iterable(page.arrays for page in pages):
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return digest.digest()


class Quarantine:
    """Suspects and refused pages, each forgotten after a time.

    Args:
        seconds: How long.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._suspects: dict[bytes, float] = {}
        self._refused: dict[bytes, float] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no page needs to be hashed."""
        self._forget_old()
        return not self._suspects and not self._refused

    def is_suspect(self, digest: bytes) -> bool:
        """Whether a page of that content was in work when the engine died."""
        return digest in self._suspects

    def is_refused(self, digest: bytes) -> bool:
        """Whether a page of that content ended the engine twice."""
        return digest in self._refused

    def suspect(self, digests: Iterable[bytes]) -> None:
        """Remember pages that were in work at a death."""
        for digest in digests:
            _remember(self._suspects, digest, self._clock() + self._seconds)

    def refuse(self, digest: bytes) -> None:
        """Remember a page that was in work at two deaths."""
        self._suspects.pop(digest, None)
        _remember(self._refused, digest, self._clock() + self._seconds)

    def acquit(self, digest: bytes) -> None:
        """Forget a suspect: it has been read."""
        self._suspects.pop(digest, None)

    def _forget_old(self) -> None:
        now_s = self._clock()
        for pages in (self._suspects, self._refused):
            while pages and pages[oldest := next(iter(pages))] <= now_s:
                del pages[oldest]


def _remember(pages: dict[bytes, float], digest: bytes, until_s: float) -> None:
    pages.pop(digest, None)
    pages[digest] = until_s
    if len(pages) > MAX_REMEMBERED_PAGES:
        del pages[next(iter(pages))]
