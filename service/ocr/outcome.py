"""What became of a page: read, nothing to read, not readable, or failed."""

from __future__ import annotations

from enum import StrEnum

from shared.images.page_ink import MOST_MARKS, PageInk

MIN_CONFIDENCE = 0.6
"""Between answers that are on the page and those that are not, where there is little print (docs/outcomes.md)."""
MANY_MARKS = 12
"""A page with fewer marks has a few words at most, so an uncertain answer is likely to be invented."""
HOPELESS_SHARE = 2 / 3
"""Of that, below which an answer for more print counts as invented: music has the marks of a paragraph."""
JUNK_SHARE = 0.65
"""Of that, below which the share of words that is expected to be right makes a text junk: what a model writes for a
script that it does not know looks like words (docs/confidence.md)."""
MIN_COVERAGE = 0.9
"""Of clean pages that were read to the end all but a few have more (docs/outcomes.md)."""
FEW_MARKS = 3
"""Fewer shapes than this, which the model reads as nothing, are dust."""
SURE = 0.85
"""Invented text is less certain than this, print that is joined by rules or lies in a shadow more."""
BEYOND_DOUBT = 0.95
"""From this confidence on a text is taken although noise hides its print: invented text of more than a sign or two has
not reached it (docs/outcomes.md)."""
LEAST_SHARE = 0.5
"""Of what looks like lines, on pages with print; 16 of 18 photographs that were read by lines had less."""
MOST_SIGNS = 2
"""What has the shape of a character on a photograph is alone, mostly."""
_ROUND = frozenset("0oO")
"""What punch holes are read as."""
CHARACTERS_A_BODY = 3
"""At most, for a width as large as a character's height."""
CHARACTERS_A_MARK = 12
"""More characters than this for each shape of print cannot be on the page, even where the letters of words touch."""


class BlankPages(StrEnum):
    """What to do with pages that show no print."""

    SKIP = "skip"
    READ = "read"


class Orientation(StrEnum):
    """What to do with pages that are not upright."""

    AUTO = "auto"
    AS_IS = "as-is"


class PageStatus(StrEnum):
    """Outcome of one page."""

    OK = "ok"
    BLANK = "blank"
    UNREADABLE = "unreadable"
    FAILED = "failed"


def status_of(
    ink: PageInk,
    text: str,
    confidence: float,
    min_confidence: float,
    *,
    is_by_lines: bool = False,
    share_of_lines: float = 1.0,
    is_junk: bool = False,
) -> PageStatus:
    """Hold an answer against what the page shows.

    Args:
        ink: What was found on the page.
        text: What the model read.
        confidence: Of the answer, 0 to 1.
        min_confidence: Answers for pages with little or no print must reach it.
        is_by_lines: The page was read line by line, so that what looks like print on a photo was, too.
        share_of_lines: Of what looked like lines then, how much was read as any text.
        is_junk: Hardly any word is expected to be right.

    Returns:
        `ok`; `blank` where nothing was read and there is hardly anything; else `unreadable`.
    """
    num_characters = sum(not character.isspace() for character in text)
    if not num_characters:
        return PageStatus.BLANK if ink.marks < FEW_MARKS else PageStatus.UNREADABLE
    # Dots and dashes alone are dirt, of whose shape a model may be sure, and so are most zeros.
    letters = {character for character in text if character.isalnum()}
    is_dirt = not letters or (letters <= _ROUND and confidence < SURE)
    is_doubtful = ink.marks < MANY_MARKS and (is_dirt or confidence < min_confidence)
    # So little is print on photographs, of which a sign or two may be read surely.
    sure = SURE * min(1.0, min_confidence / MIN_CONFIDENCE)
    is_sign = num_characters <= MOST_SIGNS and min_confidence > 0.0
    is_doubtful |= share_of_lines < LEAST_SHARE and (is_sign or confidence < sure)
    is_doubtful |= ink.is_in_shadow and confidence < sure
    # Slashes, brackets and dots are what a model makes of twigs and planks.
    is_doubtful |= not letters and confidence < min_confidence
    is_doubtful |= (is_by_lines or ink.marks < MOST_MARKS) and confidence < HOPELESS_SHARE * min_confidence
    is_too_long = ink.marks < MOST_MARKS and num_characters > CHARACTERS_A_MARK * (ink.marks + 1)
    if is_too_long and confidence >= SURE:
        # Underlined or on ruled paper, a line of print is a single shape.
        is_too_long = num_characters > _room_for(ink) and confidence < BEYOND_DOUBT
    return PageStatus.UNREADABLE if is_doubtful or is_too_long or is_junk else PageStatus.OK


def _room_for(ink: PageInk) -> float:
    """Characters that the lines of a page have room for."""
    return sum(CHARACTERS_A_BODY * sum(line.words_px) / max(line.body_px, 1.0) for line in ink.lines)
