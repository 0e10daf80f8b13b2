"""Whether a client allows that pages of its request are kept, told by a header that every route reads the same way."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from service.errors import InvalidFieldError
from service.schemas import NO_STORE_HEADER

_REFUSES = {"1": True, "true": True, "0": False, "false": False}
"""An empty value says neither: it may be what is left of a variable that was not set."""
_DESCRIPTION = "`1`: keep nothing of this request, where the service keeps samples."


@dataclass(frozen=True, slots=True)
class Consent:
    """Whether the pages of an answer may be kept, and the id under which they are found."""

    answer_id: str
    may_store: bool


async def _may_store(
    request: Request, _: Annotated[str | None, Header(alias=NO_STORE_HEADER, description=_DESCRIPTION)] = None
) -> bool:
    """False if any of the headers says so; raises `InvalidFieldError` for one that says neither.

    Routes that keep nothing check it too, and misspelt names, so that no wish is overlooked.
    """
    said = [_REFUSES.get(value.strip().lower()) for value in request.headers.getlist(NO_STORE_HEADER)]
    if None in said or any(map(_is_misspelt, request.headers)):
        raise InvalidFieldError(public={"field": NO_STORE_HEADER, "expected": ["1", "0"]})
    return True not in said


def _is_misspelt(name: str) -> bool:
    """Whether a header is about storing here, under a name that is not ours."""
    letters = "".join(filter(str.isalpha, name.lower()))
    return name.lower() != NO_STORE_HEADER.lower() and "deepsynth" in letters and "stor" in letters


MayStoreDep = Annotated[bool, Depends(_may_store)]


def new_consent(may_store: bool, prefix: str = "ocr") -> Consent:
    """The consent of a new answer."""
    return Consent(f"{prefix}-{uuid.uuid4().hex}", may_store)
