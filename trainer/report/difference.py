"""What a reading lacks and what it adds, as HTML: the fewest edits, which are those that the error rates count.

The alignment is rapidfuzz's: Python's own takes minutes for a page that looped.
"""

from __future__ import annotations

from html import escape

from rapidfuzz.distance import Levenshtein

from shared.contract.text import normalise


def marked_difference(truth: str, reading: str) -> str:
    """A reading as HTML: what it lacks as `del`, what it adds as `ins`; white space folded as for the rates."""
    expected, read = normalise(truth), normalise(reading)
    parts = []
    for edit in Levenshtein.opcodes(expected, read):
        missed, added = expected[edit.src_start : edit.src_end], read[edit.dest_start : edit.dest_end]
        parts.append(escape(missed) if edit.tag == "equal" else _marked(missed, added))
    return "".join(parts)


def _marked(missed: str, added: str) -> str:
    return (f"<del>{escape(missed)}</del>" if missed else "") + (f"<ins>{escape(added)}</ins>" if added else "")
