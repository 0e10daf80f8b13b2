"""Pieces of HTML that several sections share. Every text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape


def facts(title: str, values: Mapping[str, object]) -> str:
    """A list of names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_said(value))}</dd>" for name, value in values.items())
    return f'<details><summary>{escape(title)}</summary><dl class="facts">{rows}</dl></details>'


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], num_headers: int = 1) -> str:
    """A table that scrolls if it is wider than the page.

    Args:
        caption: what it shows.
        columns: their names.
        rows: cells that are HTML already.
        num_headers: columns at the left that name a row.

    Returns:
        HTML.
    """
    head = "".join(
        f'<th scope="col"{_left(place, num_headers)}>{escape(name)}</th>' for place, name in enumerate(columns)
    )
    body = "".join(f"<tr>{_cells(row, num_headers)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """The legend of a picture: `(class, name)` of each line."""
    items = "".join(f'<li><span class="{kind}"></span>{escape(name)}</li>' for kind, name in entries)
    return f'<ul class="legend">{items}</ul>'


def figure(caption: str, *parts: str) -> str:
    """A picture with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{''.join(parts)}</figure>"


def _cells(row: Sequence[str], num_headers: int) -> str:
    return "".join(
        f'<th scope="row"{_left(place, num_headers)}>{cell}</th>' if place < num_headers else f"<td>{cell}</td>"
        for place, cell in enumerate(row)
    )


def _left(place: int, num_headers: int) -> str:
    return ' class="left"' if place < num_headers else ""


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
