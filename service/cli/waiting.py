"""A line on the terminal that says what is being waited for, and goes when it is over."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_CLEAR_LINE = "\r\x1b[K"


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show the text on standard error until the block ends; nothing is shown where that is not a terminal.

    Args:
        text: What is being done, such as `Loading nano`.

    Yields:
        Nothing.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"{text} ...")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()
