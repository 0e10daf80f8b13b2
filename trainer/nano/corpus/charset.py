"""The characters that nano's training texts may have.

Everything that makes or cleans text passes through `clean_text`, so that no page needs a character outside this set.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

ASCII: Final = "".join(chr(code) for code in range(0x20, 0x7F))
LATIN_1: Final = "¡¢£¥§©ª«®°±²³µ¶·¹º»¼½¾¿" + "".join(chr(code) for code in range(0xC0, 0x100))
LATIN_EXTENDED: Final = "ĀāĂăĄąĆćČčĎďĐđĒēĖėĘęĚěĞğĢģĪīĮįİıĶķĹĺĽľŁłŃńŅņŇňŌōŐőŒœŔŕŘřŚśŞşŠšŢţŤťŪūŮůŰűŲųŸŹźŻżŽžȘșȚț"
TYPOGRAPHIC: Final = "–—‘’‚“”„†‡•…‰‹›€™−≤≥"
SUPPORTED: Final = frozenset(ASCII + LATIN_1 + LATIN_EXTENDED + TYPOGRAPHIC)

# A face without one of these is not used; other characters are optional.
REQUIRED: Final = frozenset(ASCII[1:] + "ÀÁÂÄÇÈÉÊËÍÎÏÑÓÔÖÙÚÜßàáâäçèéêëíîïñóôöùúü")

_REPLACED: Final = str.maketrans(
    {
        "\u00a0": " ",
        "\u2002": " ",
        "\u2003": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u00ad": None,
        "\u200b": None,
        "\ufeff": None,
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "–",
        "\u2015": "—",
        "\u201b": "‘",
        "\u2032": "'",
        "\u2033": '"',
        "\u2022": "•",
        "\u00b4": "'",
        "\ufb01": "fi",
        "\ufb02": "fl",
    }
)
_RUNS: Final = re.compile(r"(?:\. ?){4,}|(?:… ?){2,}|(?:_ ?){4,}|(?:- ?){4,}|(?:= ?){4,}|(?:\* ?){8,}")
_SPACES: Final = re.compile(r"\s+")


def clean_text(text: str) -> str | None:
    """Normalise a text to NFC on one line with single spaces; None if it has a character outside `SUPPORTED`."""
    cleaned = _SPACES.sub(" ", unicodedata.normalize("NFC", text).translate(_REPLACED)).strip()
    return cleaned if SUPPORTED.issuperset(cleaned) else None


def shorten_runs(text: str) -> str:
    """Leaders and typed rules as three of their sign: how many there are cannot be counted by eye, and is of no use."""
    lines = (
        _RUNS.sub(lambda run: f"{run[0][0] * 3} ".replace("………", "..."), line).rstrip() for line in text.split("\n")
    )
    return "\n".join(lines)
