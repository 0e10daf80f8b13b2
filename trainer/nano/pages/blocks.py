"""Kinds of content of a page before layout, independent of fonts and pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text, broken into lines by the layout."""

    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; level 0 is a page's title."""

    text: str
    level: int = 1


@dataclass(frozen=True, slots=True)
class FixedLines:
    """Lines that keep their breaks if they fit: addresses, code, single values."""

    lines: tuple[str, ...]
    monospaced: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list; each item carries its mark, such as a bullet or a number, as its first word."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; a row's truth is its cells joined by one space.

    Attributes:
        rows: cells by row; every row as long as the first.
        header: the first row is a header.
    """

    rows: tuple[tuple[str, ...], ...]
    header: bool = False


Block = Paragraph | Heading | FixedLines | Items | Table
