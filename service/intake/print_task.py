"""A text to be held against the print of its page, as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass

from shared.images.page_ink import InkLine


@dataclass(frozen=True, slots=True)
class PrintTask:
    """What `shared.images.accounting.account` takes."""

    text: str
    lines: tuple[InkLine, ...]

    def to_wire(self) -> bytes:
        """The task as JSON."""
        return json.dumps([self.text, [[line.box_px, line.words_px, line.body_px] for line in self.lines]]).encode()

    @classmethod
    def from_wire(cls, payload: bytes) -> PrintTask:
        """The task that `to_wire` wrote."""
        text, lines = json.loads(payload)
        return cls(text, tuple(InkLine(tuple(box), tuple(words), body) for box, words, body in lines))
