"""A text to be held against the print of its page, as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass

from shared.images.accounting import BoxedText
from shared.images.page_ink import InkLine


@dataclass(frozen=True, slots=True)
class PrintTask:
    """What `shared.images.accounting.account` takes.

    Attributes:
        text: What was read.
        lines: The print that it has to account for.
        boxed: The lines of the text with their places, if the page was read line by line.
    """

    text: str
    lines: tuple[InkLine, ...]
    boxed: tuple[BoxedText, ...] = ()

    def to_wire(self) -> bytes:
        """The task as JSON."""
        lines = [[line.box_px, line.words_px, line.body_px] for line in self.lines]
        boxed = [[each.box_px, each.text] for each in self.boxed]
        return json.dumps([self.text, lines, boxed]).encode()

    @classmethod
    def from_wire(cls, payload: bytes) -> PrintTask:
        """The task that `to_wire` wrote."""
        text, lines, boxed = json.loads(payload)
        return cls(
            text,
            tuple(InkLine(tuple(box), tuple(words), body) for box, words, body in lines),
            tuple(BoxedText(tuple(box), read) for box, read in boxed),
        )
