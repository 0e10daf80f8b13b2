"""The table in a model card: the text between two markers, and the record next to the card.

Card and record are written together, so the card's figures cannot drift from what was measured.
"""

from __future__ import annotations

from pathlib import Path

from trainer.evaluation.results import EvaluationResult, from_json, to_json
from trainer.evaluation.table import markdown_table

BEGIN = "<!-- evaluation: begin, written by `python -m trainer evaluate --update-card` -->"
END = "<!-- evaluation: end -->"
RECORD_NAME = "evaluation.json"


class CardError(ValueError):
    """A card without its markers."""


def record_path(card: Path) -> Path:
    """Path of a card's record."""
    return card.with_name(RECORD_NAME)


def update_card(card: Path, result: EvaluationResult) -> None:
    """Write the result into a Markdown card with both markers, and its record next to it.

    Raises `FileNotFoundError` without a card, or `CardError` if it lacks its markers.
    """
    record = to_json(result)
    # Of the record, whose figures are rounded: rounded once more, the measured ones may give others.
    text = with_table(card.read_text(encoding="utf-8"), markdown_table(from_json(record)))
    record_path(card).write_text(record, encoding="utf-8")
    card.write_text(text, encoding="utf-8")


def table_of(text: str) -> str:
    """The table between the markers, stripped; raises `CardError` if they are missing."""
    return _split(text)[1].strip()


def with_table(text: str, table: str) -> str:
    """The card's text with `table` between its markers; raises `CardError` if they are missing."""
    before, _, after = _split(text)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def _split(text: str) -> tuple[str, str, str]:
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise CardError(f"the card lacks the line {BEGIN!r} or, after it, {END!r}")
    return before, table, after
