"""Why an image cannot be read, in terms that the service and the trainer turn into errors of their own."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator, Mapping
from enum import StrEnum


class ImageReason(StrEnum):
    """Why an image cannot be read."""

    UNSUPPORTED_FORMAT = "unsupported_format"
    """`facts` has what the file is (`found`) and what to do (`advice`), where that is known."""
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    """The format is read, but not this kind of it."""
    DAMAGED = "damaged"
    TOO_MANY_PIXELS = "too_many_pixels"
    ASPECT_RATIO = "aspect_ratio"
    TOO_MANY_PAGES = "too_many_pages"
    NO_SUCH_PAGE = "no_such_page"


class ImageError(Exception):
    """An image that cannot be read."""

    def __init__(self, reason: ImageReason, detail: str = "", *, facts: Mapping[str, int | str] | None = None) -> None:
        """Make an error.

        Args:
            reason: Why.
            detail: More for the log; may come from a library.
            facts: Limits and fixed texts, none of them from the file.
        """
        super().__init__(detail or reason)
        self.reason = reason
        self.facts = dict(facts or {})


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Make an `ImageError` of whatever a codec raises on damaged bytes, and keep its warnings quiet.

    Running out of memory passes through.

    Yields:
        Nothing.

    Raises:
        ImageError: The file is damaged.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about damage that it can ignore; no one would see the warnings.
            warnings.simplefilter("ignore")
            yield
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        ArithmeticError,
        struct.error,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ImageError(ImageReason.DAMAGED, type(error).__name__) from error
