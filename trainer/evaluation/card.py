"""The table in a model card: what stands between two markers, and the record beside the card that it shows.

Card and record are written together, so the figures in the card cannot drift from what was measured.
"""

from __future__ import annotations

from pathlib import Path

from trainer.evaluation.results import EvaluationResult, to_json
from trainer.evaluation.table import markdown_table

BEGIN = "<!-- evaluation: begin, written by `python -m trainer evaluate --update-card` -->"
END = "<!-- evaluation: end -->"
RECORD_NAME = "evaluation.json"


class CardError(ValueError):
    """A card without its markers."""


def record_path(card: Path) -> Path:
    """Where the record of a card lies."""
    return card.with_name(RECORD_NAME)


def update_card(card: Path, result: EvaluationResult) -> None:
    """Write the result into a card and beside it.

    Args:
        card: A Markdown file with both markers.
        result: What to show.

    Raises:
        FileNotFoundError: There is no card.
        CardError: The card lacks its markers.
    """
    text = with_table(card.read_text(encoding="utf-8"), markdown_table(result))
    record_path(card).write_text(to_json(result), encoding="utf-8")
    card.write_text(text, encoding="utf-8")


def table_of(text: str) -> str:
    """What stands between the markers.

    Args:
        text: The card.

    Returns:
        The table without the space around it.

    Raises:
        CardError: They are missing.
    """
    return _split(text)[1].strip()


def with_table(text: str, table: str) -> str:
    """The card with another table.

    Args:
        text: The card.
        table: What goes between its markers.

    Returns:
        The new card.

    Raises:
        CardError: The markers are missing.
    """
    before, _, after = _split(text)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def _split(text: str) -> tuple[str, str, str]:
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise CardError(f"the card lacks the line {BEGIN!r} or, after it, {END!r}")
    return before, table, after
