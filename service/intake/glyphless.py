"""A font that draws nothing: it gives invisible text characters and widths, and a reader the Unicode behind them.

Every distinct character of a document gets its own code, and the font's ToUnicode map says which character that is. So
any script can be searched and copied, even outside the Basic Multilingual Plane.

Source: ISO 32000-1, 9.7 (composite fonts) and 9.10 (extraction of text); the OpenType specification for the tables.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from collections.abc import Iterable
from functools import cache

import pikepdf
from pikepdf import Array, Dictionary, Name

UNITS_PER_EM = 1000
ASCENT = 800
DESCENT = -200
NARROW = 500
WIDE = 1000
MAX_CHARACTERS = 0xFFFE
"""Two bytes a code; 0 is kept for characters that a font does not have."""
FONT_NAME = "DeepSynthInvisible"
_REPLACEMENT = "\ufffd"
_CMAP_ENTRIES = 100
"""The most entries that a block of a CMap may have."""


def advance(character: str) -> int:
    """Width of a character in thousandths of the font's size."""
    return WIDE if unicodedata.east_asian_width(character) in "WF" else NARROW


class GlyphlessFont:
    """The font of one document.

    Args:
        characters: What it must be able to write; what goes beyond `MAX_CHARACTERS` becomes U+FFFD.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        wanted = [_REPLACEMENT, *sorted(set(characters) - {_REPLACEMENT})]
        self._codes = {character: code for code, character in enumerate(wanted[:MAX_CHARACTERS], 1)}

    def encode(self, text: str) -> bytes:
        """The operand of `Tj`: hexadecimal codes."""
        missing = self._codes[_REPLACEMENT]
        return b"<%s>" % "".join(f"{self._codes.get(character, missing):04X}" for character in text).encode()

    def add_to(self, pdf: pikepdf.Pdf) -> pikepdf.Object:
        """Write the font to a document.

        Args:
            pdf: The document.

        Returns:
            The font, as a resource names it.
        """
        program = font_program()
        widths = [advance(character) for character in self._codes]
        # One glyph of each width, used by all characters that have it.
        glyphs = b"\0\0" + b"".join(struct.pack(">H", 2 if width == WIDE else 1) for width in widths)
        descriptor = Dictionary(
            Type=Name.FontDescriptor,
            FontName=Name("/" + FONT_NAME),
            Flags=4,
            FontBBox=Array([0, DESCENT, WIDE, ASCENT]),
            ItalicAngle=0,
            Ascent=ASCENT,
            Descent=DESCENT,
            CapHeight=ASCENT,
            StemV=80,
            FontFile2=_stream(pdf, program, Length1=len(program)),
        )
        descendant = Dictionary(
            Type=Name.Font,
            Subtype=Name.CIDFontType2,
            BaseFont=Name("/" + FONT_NAME),
            CIDSystemInfo=Dictionary(Registry=b"Adobe", Ordering=b"Identity", Supplement=0),
            FontDescriptor=pdf.make_indirect(descriptor),
            DW=NARROW,
            W=Array([1, Array(widths)]),
            CIDToGIDMap=_stream(pdf, glyphs),
        )
        font = Dictionary(
            Type=Name.Font,
            Subtype=Name.Type0,
            BaseFont=Name("/" + FONT_NAME),
            Encoding=Name("/Identity-H"),
            DescendantFonts=Array([pdf.make_indirect(descendant)]),
            ToUnicode=_stream(pdf, self._to_unicode()),
        )
        return pdf.make_indirect(font)

    def _to_unicode(self) -> bytes:
        lines = [
            "/CIDInit /ProcSet findresource begin",
            "12 dict begin",
            "begincmap",
            "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def",
            f"/CMapName /{FONT_NAME}-UTF16 def",
            "/CMapType 2 def",
            "1 begincodespacerange",
            "<0000> <FFFF>",
            "endcodespacerange",
        ]
        entries = [
            f"<{code:04X}> <{character.encode('utf-16-be').hex().upper()}>" for character, code in self._codes.items()
        ]
        for start in range(0, len(entries), _CMAP_ENTRIES):
            block = entries[start : start + _CMAP_ENTRIES]
            lines += [f"{len(block)} beginbfchar", *block, "endbfchar"]
        lines += ["endcmap", "CMapName currentdict /CMap defineresource pop", "end", "end", ""]
        return "\n".join(lines).encode("ascii")


def _stream(pdf: pikepdf.Pdf, data: bytes, **entries: int) -> pikepdf.Object:
    return pdf.make_indirect(pikepdf.Stream(pdf, zlib.compress(data), Filter=Name.FlateDecode, **entries))


@cache
def font_program() -> bytes:
    """A TrueType font with three glyphs that cover nothing: the missing one, a narrow one, a wide one."""
    num_glyphs = 3
    narrow, wide = _glyph(NARROW), _glyph(WIDE)
    tables = {
        b"OS/2": struct.pack(
            ">HhHHH10hh10B4L4sHHHhhhHH",
            *(0, NARROW, 400, 5, 0, *([0] * 10), 0, *([0] * 10), 0, 0, 0, 0, b"none"),
            *(0x40, 0, 0xFFFF, ASCENT, DESCENT, 0, ASCENT, -DESCENT),
        ),
        # A symbol font's map without characters: codes reach glyphs through CIDToGIDMap.
        b"cmap": struct.pack(">HHHHL12H", 0, 1, 3, 0, 12, 4, 24, 0, 2, 2, 0, 0, 0xFFFF, 0, 0xFFFF, 1, 0),
        b"glyf": narrow + wide,
        b"head": struct.pack(
            ">LLLLHHQQhhhhHHhhh",
            *(0x00010000, 0x00010000, 0, 0x5F0F3CF5, 0, UNITS_PER_EM, 0, 0, 0, DESCENT, WIDE, ASCENT, 0, 8, 2, 0, 0),
        ),
        b"hhea": struct.pack(
            ">LhhhHhhhhhhhhhhhH", 0x00010000, ASCENT, DESCENT, 0, WIDE, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, num_glyphs
        ),
        b"hmtx": struct.pack(">HhHhHh", NARROW, 0, NARROW, 0, WIDE, 0),
        # Halved offsets; the missing glyph has no outline.
        b"loca": struct.pack(">4H", 0, 0, len(narrow) // 2, (len(narrow) + len(wide)) // 2),
        b"maxp": struct.pack(">L14H", 0x00010000, num_glyphs, 2, 1, 0, 0, 2, *([0] * 8)),
        b"name": _name_table(),
        b"post": struct.pack(">LlhhLLLLL", 0x00030000, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    entry_selector = len(tables).bit_length() - 1
    search_range = 16 << entry_selector
    header = struct.pack(
        ">LHHHH", 0x00010000, len(tables), search_range, entry_selector, len(tables) * 16 - search_range
    )
    directory, body = b"", b""
    start = len(header) + 16 * len(tables)
    for tag, data in tables.items():
        directory += tag + struct.pack(">LLL", _checksum(data), start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    font = header + directory + body
    adjustment = (0xB1B0AFBA - _checksum(font)) & 0xFFFFFFFF
    at = font.index(tables[b"head"]) + 8
    return font[:at] + struct.pack(">L", adjustment) + font[at + 4 :]


def _glyph(width: int) -> bytes:
    """A line from corner to corner: without area, but readers see how much of the line to mark for a character."""
    box = struct.pack(">hhhhh", 1, 0, DESCENT, width, ASCENT)
    points = struct.pack(">HHBBhhhh", 1, 0, 1, 1, 0, width, DESCENT, ASCENT - DESCENT)
    return box + points


def _name_table() -> bytes:
    names = {1: FONT_NAME, 2: "Regular", 3: FONT_NAME, 4: FONT_NAME, 6: FONT_NAME}
    texts = b"".join(text.encode("utf-16-be") for text in names.values())
    records, start = b"", 0
    for name_id, text in names.items():
        records += struct.pack(">HHHHHH", 3, 1, 0x0409, name_id, 2 * len(text), start)
        start += 2 * len(text)
    return struct.pack(">HHH", 0, len(names), 6 + len(records)) + records + texts


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (-len(data) % 4)
    return sum(struct.unpack(f">{len(padded) // 4}L", padded)) & 0xFFFFFFFF
