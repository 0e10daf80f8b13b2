"""One page of a report: its image beside what it says and what each reader made of it."""

from __future__ import annotations

from html import escape

from trainer.report.difference import marked_difference
from trainer.report.worst import WorstPage

MOST_LETTERS = 20_000
"""A reading that ran away is cut here for the page; its figures count all of it."""


def page_section(place: int, page: WorstPage) -> str:
    """A section.

    Args:
        place: From 1.
        page: What is shown.

    Returns:
        HTML.
    """
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
        f'<img alt="The page {escape(page.name)}; its text stands beside it" src="{escape(page.image_url)}"></div><div>'
        f"<h4>What stands on it</h4><pre>{escape(page.truth)}</pre>{''.join(readings)}</div></div></section>"
    )
