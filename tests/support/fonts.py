"""Fonts made for a test: every letter a block as wide as the test says, so that a width tells which glyph was drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

EM = 1000


def write_font(
    path: Path,
    widths: Mapping[str, int],
    extra: Mapping[str, int] | None = None,
    rules: str = "",
    *,
    family: str = "",
    weight: int = 400,
    code_pages: int = 0,
) -> Path:
    """Write a TrueType font.

    Args:
        path: the file.
        widths: advance of each character, in thousandths of an em.
        extra: further glyphs by name, for rules to name.
        rules: OpenType features.
        family: default: the file's name.
        weight: usWeightClass.
        code_pages: ulCodePageRange1.

    Returns:
        The file.
    """
    names = {ord(character): f"u{ord(character):04X}" for character in widths}
    advances = {".notdef": 500, **{names[ord(each)]: width for each, width in widths.items()}, **(extra or {})}
    builder = FontBuilder(EM, isTTF=True)
    builder.setupGlyphOrder(list(advances))
    builder.setupCharacterMap(names)
    glyphs = {}
    for name, advance in advances.items():
        pen = TTGlyphPen(None)
        if advance and name != "u0020":
            left, right = 50, advance - 50
            for corner, point in enumerate(((left, 0), (left, 700), (right, 700), (right, 0))):
                (pen.lineTo if corner else pen.moveTo)(point)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (advance, 50) for name, advance in advances.items()})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family or path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200,
                     usWeightClass=weight, ulCodePageRange1=code_pages)  # fmt: skip
    builder.setupPost()
    if rules:
        builder.addOpenTypeFeatures(rules)
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return path
