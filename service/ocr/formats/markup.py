"""The model's Markdown as HTML that is safe to show, and as plain text; characters that documents may hold.

What a model reads is a stranger's text. Its Markdown may have tables in HTML, so HTML is rendered, and nh3 keeps only
the elements and attributes that are named here.
"""

from __future__ import annotations

import html
import re
from functools import cache
from html.parser import HTMLParser

import nh3
from markdown_it import MarkdownIt

_BLOCKS = frozenset(
    ("blockquote", "caption", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p", "pre", "table", "ul")
)
_ROWS = frozenset(("li", "tr"))
_CELLS = frozenset(("td", "th"))
_INLINE = frozenset(("a", "b", "br", "code", "del", "em", "i", "s", "strong", "sub", "sup", "u"))
_ELEMENTS = _BLOCKS | _ROWS | _CELLS | _INLINE | {"tbody", "tfoot", "thead"}
_DROPPED = frozenset({"center", "div", "span"})
"""Elements that models write; their content is kept."""
_ATTRIBUTES = {
    "a": {"href"},
    "ol": {"start"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan"},
}
_SCHEMES = {"http", "https", "mailto"}
# A "<" that opens none of these elements is a character of the text.
_NO_TAG = re.compile(rf"<(?!/?(?:{'|'.join(sorted(_ELEMENTS | _DROPPED))})(?![A-Za-z0-9:_-])[^<>]*>)", re.IGNORECASE)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_PRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NUMBER = re.compile(r"[0-9]{1,9}")
_SPACES = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"\n{3,}")


def xml_text(text: str) -> str:
    """Text without the characters that XML 1.0 does not allow (production 2)."""
    return _NOT_XML.sub("", text)


def escape(text: str) -> str:
    """Text for HTML and XML, quotes included."""
    return html.escape(xml_text(text))


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": True, "breaks": True}).enable(["table", "strikethrough"])
    # Models write formulas as \( \) and escape nothing; indented lines, rules under lines and "[a]: b" are text that a
    # page shows.
    return markdown.disable(["escape", "code", "lheading", "reference"])


def safe_html(markdown: str) -> str:
    """Markdown, with HTML tables or without, as HTML that holds no script, style, image or form."""
    rendered = _markdown().render(_NO_TAG.sub("&lt;", xml_text(markdown)))
    return nh3.clean(
        rendered,
        tags=set(_ELEMENTS),
        attributes={element: set(names) for element, names in _ATTRIBUTES.items()},
        url_schemes=set(_SCHEMES),
        link_rel="noopener noreferrer nofollow",
    )


def plain_text(text: str, *, is_markdown: bool) -> str:
    """Text without Markdown's marks: a table's cells are separated by tabs, and control characters are left out."""
    if is_markdown:
        reader = _TextReader()
        reader.feed(safe_html(text))
        reader.close()
        text = "\n".join(line.strip(" \t") for line in "".join(reader.pieces).split("\n"))
        text = _BLANK_LINES.sub("\n\n", text).strip("\n")
    return _NOT_PRINTED.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n"))


class _TextReader(HTMLParser):
    """Collects the text of sanitised HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._numbers: list[int | None] = []
        """Of open lists, the next item's number; None of those without."""
        self._num_tables = 0
        self._is_after_break = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.pieces.append("\n\n")
        if tag in _ROWS:
            self.pieces.append("\n")
        if tag == "br":
            self.pieces.append(" " if self._num_tables else "\n")
            self._is_after_break = True
        elif tag == "table":
            self._num_tables += 1
        elif tag == "ul":
            self._numbers.append(None)
        elif tag == "ol":
            start = dict(attrs).get("start") or ""
            self._numbers.append(int(start) if _NUMBER.fullmatch(start) else 1)
        elif tag == "li":
            self._begin_item()

    def _begin_item(self) -> None:
        number = self._numbers[-1] if self._numbers else None
        if number is None:
            self.pieces.append("- ")
        else:
            self.pieces.append(f"{number}. ")
            self._numbers[-1] = number + 1

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.pieces.append("\n\n")
        elif tag in _CELLS:
            self.pieces.append("\t")
        if tag == "table":
            self._num_tables -= 1
        elif tag in {"ul", "ol"}:
            self._numbers.pop()

    def handle_data(self, data: str) -> None:
        if self._is_after_break:
            # Markdown's own line break is one in the source as well.
            data = data.removeprefix("\n")
            self._is_after_break = False
        if self._num_tables:
            # Line breaks in a table are those of its source.
            data = "" if data.isspace() else _SPACES.sub(" ", data)
        elif self._numbers and data.isspace():
            return
        self.pieces.append(data)
