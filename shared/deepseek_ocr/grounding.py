"""From a grounded answer to clean text and boxes on the page.

The model writes `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>` and then the text it read there.
Coordinates run from 0 to 999 along each side of the uploaded page, whatever its views (the public code scales by the
page's own width and height). For the prompt "OCR this image" it writes the text itself as the label. Unlimited-OCR
writes `<|det|>label [x1, y1, x2, y2]<|/det|>` and then the text.

An answer is untrusted: nothing here evaluates it, raises an error for it, or takes more than linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

GRID = 999
"""The largest coordinate, on the right or bottom edge of the page."""

MARKER = re.compile(r"<\|(/?)(ref|det|grounding)\|>")
_NUMBER = r"\s{0,8}([+-]?[0-9]{1,12}(?:\.[0-9]{0,12})?)\s{0,8}"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_CUT_BOXES = re.compile(r"[\[\]0-9,.\s]*")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
_LABELLED = re.compile(r"\s*([^\s\[\]]{1,64})\s*(\[[0-9,.+\-\s]*\]?)\s*")
_OPEN_REF, _CLOSE_REF, _OPEN_DET, _CLOSE_DET = "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"
OPEN_TAG = re.compile(r"<\|ref\|>|(?<!<\|/ref\|>)<\|det\|>")
"""What a tag begins with."""


@dataclass(frozen=True, slots=True)
class Region:
    """A labelled box; `box_px` is x1, y1, x2, y2 on the uploaded page, within it, with x1 <= x2 and y1 <= y2."""

    label: str
    box_px: tuple[int, int, int, int]
    text: str
    start: int
    """Where its text begins in the answer's text, or would if it had any."""
    words_px: tuple[tuple[int, int, int, int], ...] = ()
    """Boxes of its words, where the page was read by its lines: as many as gaps in the print part."""


@dataclass(frozen=True, slots=True)
class GroundedText:
    """An answer without its markers, and the boxes of its parts."""

    text: str
    regions: tuple[Region, ...]
    sources: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """Start and end of the parts of the answer that the text consists of, in order; only white space between and in
    them is dropped or changed."""


@dataclass(frozen=True, slots=True)
class _Passage:
    """Text between two tags, with the tag before it; text before the first tag has no label."""

    label: str | None
    payload: str
    text: str
    pieces: tuple[int, ...]
    """Of the answer, that the text consists of."""
    label_piece: int | None
    """The label, where the answer has it alone between two markers."""


def parse_grounded(answer: str, width_px: int, height_px: int, *, labels_are_text: bool = False) -> GroundedText:
    """Separate the text from the boxes.

    Args:
        answer: The model's answer, complete or cut short.
        width_px: Width of the uploaded page, upright.
        height_px: Height of the uploaded page, upright.
        labels_are_text: For the task `ocr`, whose labels are the text read: a label that no text follows becomes the
            text of its region, and part of the whole text.

    Returns:
        The text, unchanged if the answer has no markers, and one region for each valid box. A tag with several boxes
        gives several regions with the same label and text. Markers that do not form a tag are removed from the text.
    """
    pieces = _pieces(answer)
    if len(pieces) == 1:
        return GroundedText(answer, (), ((0, len(answer)),))
    texts: list[str] = []
    found: list[tuple[str, tuple[int, int, int, int], str]] = []
    starts: list[int] = []
    length = 0
    shown_pieces: list[int] = []
    for passage in _passages(pieces):
        text, shown, kept = passage.text.strip(), passage.text, passage.pieces
        if labels_are_text and not text and passage.label and passage.label_piece is not None:
            text, shown, kept = passage.label, f"{passage.label}\n", (passage.label_piece,)
        shown_pieces += kept
        if passage.label is not None:
            boxes = [(passage.label, box_px, text) for box_px in _boxes(passage.payload, width_px, height_px)]
            found += boxes
            starts += [length + len(shown) - len(shown.lstrip())] * len(boxes)
        texts.append(shown)
        length += len(shown)
    whole, starts = tidied("".join(texts), starts)
    ends = [0, *accumulate(map(len, pieces))]
    return GroundedText(
        whole,
        tuple(Region(*each, start) for each, start in zip(found, starts, strict=True)),
        tuple((ends[piece], ends[piece + 1]) for piece in shown_pieces),
    )


def tidied(text: str, starts: list[int]) -> tuple[str, list[int]]:
    """The text stripped and with blank lines collapsed, and where rising positions in it are then."""
    collapsed = _BLANK_LINES.sub("\n\n", text)
    tidied = collapsed.strip()
    shift = len(collapsed) - len(collapsed.lstrip())
    breaks = [found.span() for found in _BLANK_LINES.finditer(text)]
    moved: list[int] = []
    index = 0
    for start in starts:
        while index < len(breaks) and breaks[index][1] <= start:
            shift += breaks[index][1] - breaks[index][0] - 2
            index += 1
        within = index < len(breaks) and breaks[index][0] < start
        place = min(start, breaks[index][0] + 2) if within else start
        moved.append(min(max(place - shift, 0), len(tidied)))
    return tidied, moved


def _pieces(answer: str) -> list[str]:
    """Split the answer at its markers: text and markers alternate, text first and last."""
    pieces: list[str] = []
    start = 0
    for found in MARKER.finditer(answer):
        pieces += [answer[start : found.start()], found.group()]
        start = found.end()
    return [*pieces, answer[start:]]


def _passages(pieces: list[str]) -> Iterator[_Passage]:
    """Passages in order; markers in the right sequence form a tag, any other marker is dropped."""
    label: str | None = None
    label_piece: int | None = None
    payload = ""
    texts = [0]
    index = 1

    def passage() -> _Passage:
        return _Passage(label, payload, "".join(pieces[text] for text in texts), tuple(texts), label_piece)

    while index < len(pieces):
        if _is_tag(pieces, index):
            yield passage()
            label_piece, payload = index + 1, pieces[index + 5]
            label = pieces[label_piece].strip()
            texts = [index + 7] if index + 7 < len(pieces) else []
            index += 8
        elif labelled := _labelled(pieces, index):
            yield passage()
            label_piece = None
            label, payload = labelled
            texts = [index + 3] if index + 3 < len(pieces) else []
            index += 4
        else:
            texts.append(index + 1)
            index += 2
    yield passage()


def _is_tag(pieces: list[str], index: int) -> bool:
    """Whether a tag starts at a marker; the last tag of an answer may be cut short within its boxes."""
    markers = pieces[index : index + 7 : 2]
    if markers[:3] != [_OPEN_REF, _CLOSE_REF, _OPEN_DET] or pieces[index + 3].strip():
        return False
    return markers[3] == _CLOSE_DET if len(markers) > 3 else _CUT_BOXES.fullmatch(pieces[index + 5]) is not None


def _labelled(pieces: list[str], index: int) -> tuple[str, str] | None:
    """Label and box of a tag without `<|ref|>`; the last one may be cut short."""
    if pieces[index] != _OPEN_DET or pieces[index + 2 : index + 3] not in ([_CLOSE_DET], []):
        return None
    found = _LABELLED.fullmatch(pieces[index + 1])
    return (found[1], found[2]) if found else None


def _boxes(payload: str, width_px: int, height_px: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of a `<|det|>`; anything other than four numbers in brackets is skipped."""
    for found in _BOX.finditer(payload):
        x1, y1, x2, y2 = (min(max(float(number), 0.0), float(GRID)) / GRID for number in found.groups())
        left, right = sorted((round(x1 * width_px), round(x2 * width_px)))
        top, bottom = sorted((round(y1 * height_px), round(y2 * height_px)))
        yield (left, top, right, bottom)
