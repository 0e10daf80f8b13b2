"""Finds the rows of a page that are like what an answer repeats, for the service and for the trainer's gate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from shared.contract.repetition import Rows
from shared.images.accounting import repeats
from shared.images.page_ink import InkLine


def find_rows(before: Sequence[bytes], pieces: Sequence[bytes], lines: Sequence[InkLine]) -> Rows:
    """Find rows of print like a repeating text.

    Args:
        before: UTF-8 of the tokens before it.
        pieces: Of the tokens of one period.
        lines: The page's print.

    Returns:
        Their number, and the spacing with which the text begins.
    """
    spacing = sum(1 for _ in takewhile(lambda piece: not piece.strip(), pieces))
    unit, text = (b"".join(part).decode(errors="replace") for part in (pieces, before))
    return Rows(repeats(unit, text, lines), spacing)
