"""One page of a report: its image next to its text and each reader's result."""

from __future__ import annotations

from html import escape

from trainer.report.difference import marked_difference
from trainer.report.worst import WorstPage

MOST_LETTERS = 20_000
"""Longer readings are truncated in the report; their figures count all of it."""


def page_section(place: int, page: WorstPage) -> str:
    """The HTML section of a page, numbered from 1."""
    readings = []
    for reading in page.readings:
        notes = [f"CER {100 * reading.cer:.1f} %", *([] if reading.ended else ["looped or met the limit"])]
        cut = len(reading.text) > MOST_LETTERS
        text = marked_difference(page.truth, reading.text[:MOST_LETTERS])
        more = f' <span class="quiet">and {len(reading.text) - MOST_LETTERS} letters more</span>' if cut else ""
        readings.append(f"<h4>{escape(reading.reader)}: {', '.join(notes)}</h4><pre>{text}{more}</pre>")
    return (
        f'<section class="page" aria-labelledby="page-{place}"><h3 id="page-{place}">{place}. {escape(page.name)} '
        f'<span class="quiet">{escape(page.tier)}</span></h3><div class="columns"><div>'
        f'<img alt="The page {escape(page.name)}; its text is next to it" src="{escape(page.image_url)}"></div><div>'
        f"<h4>Text</h4><pre>{escape(page.truth)}</pre>{''.join(readings)}</div></div></section>"
    )
