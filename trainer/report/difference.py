"""The difference of a reading from the truth as HTML: the minimal edits, which the error rates count.

The alignment is rapidfuzz's: Python's own takes minutes for a page that looped.
"""

from __future__ import annotations

from html import escape

from rapidfuzz.distance import Levenshtein

from shared.contract.text import normalise

SHORTEST_AGREEMENT = 3
"""Shorter matches between two edits are shown as part of one edit, which is easier to read."""


def marked_difference(truth: str, reading: str) -> str:
    """A reading as HTML: missing text as `del`, added text as `ins`; white space folded as for the rates."""
    expected, read = normalise(truth), normalise(reading)
    edits = list(Levenshtein.opcodes(expected, read))
    parts = []
    missed = added = ""
    for place, edit in enumerate(edits):
        was, now = expected[edit.src_start : edit.src_end], read[edit.dest_start : edit.dest_end]
        is_between = 0 < place < len(edits) - 1
        if edit.tag == "equal" and not (is_between and len(was) < SHORTEST_AGREEMENT):
            parts += [_marked(missed, added), escape(was)]
            missed = added = ""
        else:
            missed, added = missed + was, added + now
    return "".join([*parts, _marked(missed, added)])


def _marked(missed: str, added: str) -> str:
    return (f"<del>{escape(missed)}</del>" if missed else "") + (f"<ins>{escape(added)}</ins>" if added else "")
