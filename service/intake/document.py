"""A file on its way through the service, as long as it is read."""

from __future__ import annotations

from dataclasses import dataclass

from service.intake.limits import IntakeLimits
from service.intake.pages import Contents
from shared.images.formats import FileFormat, detect_format

_SEVERAL_PAGES = {FileFormat.TIFF, FileFormat.PDF}


@dataclass(eq=False, slots=True)
class Document:
    """A file whose pages are decoded one after another; compared by identity."""

    data: bytes
    limits: IntakeLimits
    selection: tuple[int, ...] | None = None
    """Numbers of the pages to read, from 1, rising; None for all."""
    client: str = ""
    """Who sent it."""
    is_unopened: bool = False
    """Its contents are known, but no image process has opened it yet: it may not be what it seems."""
    is_closed: bool = False
    """No page will be asked for any more, so no image process needs to keep it."""
    num_sent: int = 0
    """How often it went to an image process: once, and once more after each eviction or crash."""
    used_s: float = 0.0
    """Time of image processes that counts as used among those of its client, see `Turns`."""
    is_slow: bool = False
    """Whether its last page took a process long."""
    worked_s: float = 0.0
    """Time that image processes have worked on it."""
    num_turns: int = 0
    """How often."""


def contents_by_format(document: Document) -> Contents | None:
    """What there is to read of a file of a format that has one page; None where an image process has to look."""
    found = detect_format(document.data)
    if found is None or found in _SEVERAL_PAGES or document.selection not in (None, (1,)):
        return None
    return Contents(found, (1,))
