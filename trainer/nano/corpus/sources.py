"""Readers that turn documentation files into plain paragraphs.

Each reader yields raw paragraphs; `pack` cleans, filters and deduplicates them.
"""

from __future__ import annotations

import gettext
import gzip
import html
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_DROPPED_ELEMENTS: Final = re.compile(
    r"<(script|style|pre|code-block|programlisting|screen|head|nav|info|svg|table)\b.*?</\1\s*>", re.S | re.I
)
_BLOCK_TAG: Final = re.compile(
    r"</?(?:p|para|simpara|li|item|dd|dt|div|h[1-6]|title|td|th|tr|br|ul|ol|dl|section|listitem|entry|note|term)\b[^>]*>",
    re.I,
)
_TAG: Final = re.compile(r"<[^<>]{0,400}>", re.S)
_COMMENT: Final = re.compile(r"<!--.*?-->", re.S)
_POD_MARKUP: Final = re.compile(r"[A-Z]<+\s?([^<>]*?)\s?>+")
_ROFF_FONT: Final = re.compile(r"\\f(?:\[[A-Z]*\]|\([A-Z]{2}|.)|\\s[+-]?\d|\\[&:|^%)/,]")
_ROFF_CHARACTERS: Final = {
    "\\(aq": "'", "\\(dq": '"', "\\(en": "–", "\\(em": "—", "\\(lq": "“", "\\(rq": "”", "\\(oq": "‘", "\\(cq": "’",
    "\\(bu": "•", "\\(co": "©", "\\(+-": "±", "\\(Fo": "«", "\\(Fc": "»", "\\(bq": "„", "\\(ha": "^", "\\(ti": "~",
    "\\-": "-", "\\ ": " ", "\\~": " ", "\\0": " ", "\\e": "\\", "\\'": "´", "\\`": "`", "\\.": ".",
}  # fmt: skip
_ROFF_BREAKS: Final = frozenset(
    {
        "PP", "P", "LP", "TP", "IP", "SH", "SS", "HP", "br", "sp", "Pp", "Bl", "El", "It", "Sh", "Ss", "RS", "RE", "nf",
        "fi", "TQ", "EX", "EE",
    }
)  # fmt: skip
_ROFF_TEXT: Final = frozenset({"B", "I", "BR", "BI", "IB", "IR", "RB", "RI", "SM", "SB"})


def read_paragraphs(path: Path) -> Iterator[str]:
    """Read a file's raw paragraphs in the format of its name; nothing if it holds no text."""
    reader = _reader_for(path)
    if reader is None:
        return
    raw = path.read_bytes()
    if path.name.endswith((".gz", ".dz")):
        raw = gzip.decompress(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    yield from reader(text)


def read_catalogue(path: Path) -> dict[str, str]:
    """Read translations by original from a `.mo` file, without plural forms."""
    try:
        catalogue = gettext.GNUTranslations(io.BytesIO(path.read_bytes()))
    except (OSError, UnicodeDecodeError, ValueError):
        return {}
    entries: dict[object, object] = vars(catalogue).get("_catalog", {})
    return {
        key.rpartition("\x04")[2]: value
        for key, value in entries.items()
        if isinstance(key, str) and isinstance(value, str) and key
    }


def markup_paragraphs(text: str) -> Iterator[str]:
    """Read HTML, DocBook and Mallard: the text between block tags, without inline tags."""
    text = _DROPPED_ELEMENTS.sub("\n", _COMMENT.sub("", text))
    for block in _BLOCK_TAG.split(text):
        yield html.unescape(_TAG.sub("", block))


def plain_paragraphs(text: str) -> Iterator[str]:
    """Read paragraphs between blank lines of plain text; lines are joined, and hyphens at line ends resolved."""
    for block in re.split(r"\n\s*\n", text):
        yield re.sub(r"(\w)-\n\s*([a-z])", r"\1\2", block)


def fortune_paragraphs(text: str) -> Iterator[str]:
    """Read the entries of a fortune file, separated by lines of one percent sign."""
    for entry in re.split(r"\n%+\n", text):
        yield from re.split(r"\n\s*--+\s*", entry)


def pod_paragraphs(text: str) -> Iterator[str]:
    """Read headings and running paragraphs of Perl's documentation format, without markup."""
    for block in text.split("\n\n"):
        if block.startswith((" ", "\t", "=for", "=begin", "=end", "=over", "=back", "=cut", "=encoding")):
            continue
        bare = re.sub(r"^=\w+\s*", "", block.strip())
        for _ in range(2):
            bare = _POD_MARKUP.sub(lambda match: match[1].split("|")[0], bare)
        yield html.unescape(bare)


def manual_paragraphs(text: str) -> Iterator[str]:
    """Read running paragraphs of a manual page's source; those with unknown macros are left out."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith((".", "'")):
            words.append(line)
            continue
        name, _, rest = line[1:].strip().partition(" ")
        if name in _ROFF_TEXT:
            parts = re.findall(r'"[^"]*"|\S+', rest)
            glue = " " if name in {"B", "I", "SM", "SB"} else ""
            words.append(glue.join(part.strip('"') for part in parts))
        elif name in _ROFF_BREAKS or name.startswith('\\"'):
            yield _without_roff_escapes(" ".join(words))
            words = [rest] if name in {"SS", "SH"} else []
    yield _without_roff_escapes(" ".join(words))


def _without_roff_escapes(text: str) -> str:
    for escape, character in _ROFF_CHARACTERS.items():
        text = text.replace(escape, character)
    text = re.sub(r"\\\[(?:aq|dq)\]", "'", text)
    return _ROFF_FONT.sub("", text)


def _reader_for(path: Path) -> Callable[[str], Iterator[str]] | None:
    name = path.name.removesuffix(".gz")
    if "/man/" in str(path):
        return manual_paragraphs
    if "changelog" in name.lower() or "copyright" in name.lower():
        return None
    if "/fortunes/" in str(path) and (name.endswith((".fortunes", ".u8")) or "." not in name):
        return fortune_paragraphs
    if name.endswith(".xml") and "/help/" in str(path):
        return markup_paragraphs
    if "/doc/" in str(path) and "." not in name:
        return plain_paragraphs
    return next((reader for suffix, reader in _READERS.items() if name.endswith(suffix)), None)


_READERS: Final[dict[str, Callable[[str], Iterator[str]]]] = {
    ".html": markup_paragraphs,
    ".htm": markup_paragraphs,
    ".page": markup_paragraphs,
    ".docbook": markup_paragraphs,
    ".pod": pod_paragraphs,
    ".u8": fortune_paragraphs,
    ".dict.dz": plain_paragraphs,
    ".dict": plain_paragraphs,
    ".txt": plain_paragraphs,
    ".adoc": plain_paragraphs,
    ".md": plain_paragraphs,
}
