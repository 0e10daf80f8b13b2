"""The header `Accept`: which output format a client wants (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import NotAcceptableError
from service.ocr.formats.output_format import OutputFormat
from service.ocr.formats.registry import DEFAULT, FORMATS

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"({_NAME})/({_NAME})")
_QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class _MediaRange:
    kind: str
    subkind: str
    quality: float

    def precision(self, media_type: str) -> int:
        """How closely it matches: 2 exactly, 1 by the type before the slash, 0 as any, -1 not at all."""
        kind, _, subkind = media_type.partition("/")
        if (self.kind, self.subkind) == ("*", "*"):
            return 0
        if self.kind != kind or self.subkind not in ("*", subkind):
            return -1
        return 1 if self.subkind == "*" else 2


def choose_format(accept: Sequence[str]) -> OutputFormat:
    """The format that a client likes best; of several, the first of the registry.

    Args:
        accept: Values of the header, which may come several times; what cannot be read in them is skipped.

    Returns:
        The format: JSON if nothing in the header can be read, or there is none.

    Raises:
        NotAcceptableError: The client accepts none of them.
    """
    ranges = [each for value in accept for part in value.split(",") if (each := _media_range(part)) is not None]
    if not ranges:
        return DEFAULT
    best = max(FORMATS.values(), key=lambda each: _quality(each, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptableError(public={"available": [each.essence for each in FORMATS.values()]})
    return best


def _media_range(text: str) -> _MediaRange | None:
    name, *parameters = (part.strip() for part in text.lower().split(";"))
    found = _RANGE.fullmatch(name)
    if found is None or (found[1] == "*" and found[2] != "*"):
        return None
    quality = next((value for key, _, value in (each.partition("=") for each in parameters) if key == "q"), "1")
    return _MediaRange(found[1], found[2], float(quality)) if _QUALITY.fullmatch(quality) else None


def _quality(output: OutputFormat, ranges: Sequence[_MediaRange]) -> float:
    """Of the range that matches most closely; 0 if none does."""
    closest = max(ranges, key=lambda each: each.precision(output.essence))
    return closest.quality if closest.precision(output.essence) >= 0 else 0.0
