"""Which language a text in Han characters is written in, as far as its characters say.

Unicode gives one code point to a character whose form differs between Japanese, Korean and both ways of writing
Chinese, so a face made for one language draws another's text wrongly. Knows no fonts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Final

JAPANESE, KOREAN, SIMPLIFIED, TRADITIONAL = "ja", "ko", "zh-Hans", "zh-Hant"
LANGUAGES: Final = (JAPANESE, KOREAN, SIMPLIFIED, TRADITIONAL)
_KANA: Final = ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x31F0, 0x31FF), (0xFF66, 0xFF9D))
_HANGUL: Final = ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3))
_BOPOMOFO: Final = ((0x3105, 0x312F), (0x31A0, 0x31BF))
_HAN: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_STANDARDS: Final = {SIMPLIFIED: "gb2312", TRADITIONAL: "big5", JAPANESE: "shift_jis"}


def han_language(text: str) -> str | None:
    """The language of a text with Han characters.

    Args:
        text: of any script.

    Returns:
        One of `LANGUAGES`: by kana, Hangul or bopomofo, else by characters that a single national standard has. None if
        there is no Han character, or none that tells.
    """
    if not any(_in(character, _HAN) for character in text):
        return None
    for written, ranges in ((JAPANESE, _KANA), (KOREAN, _HANGUL), (TRADITIONAL, _BOPOMOFO)):
        if any(_in(character, ranges) for character in text):
            return written
    told = Counter(language for character in text if _in(character, _HAN) and (language := _only_in(character)))
    most = told.most_common(2)
    is_told = len(most) == 1 or (len(most) == 2 and most[0][1] > most[1][1])
    return most[0][0] if is_told else None


@cache
def _only_in(character: str) -> str | None:
    """The language whose standard alone has a character. GB 2312 has simplified forms, Big5 traditional ones."""
    chinese = [language for language in (SIMPLIFIED, TRADITIONAL) if _has(_STANDARDS[language], character)]
    if len(chinese) == 1:
        return chinese[0]
    return JAPANESE if not chinese and _has(_STANDARDS[JAPANESE], character) else None


def _has(standard: str, character: str) -> bool:
    try:
        character.encode(standard)
    except UnicodeEncodeError:
        return False
    return True


def _in(character: str, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)
