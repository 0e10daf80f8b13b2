"""What an output format is: a name, a media type, a file extension and a way to write a document."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from service.intake.document import Document
from service.intake.text_layer import TextTask
from service.ocr.formats.document import ReadDocument


class PdfMaker(Protocol):
    """Adds text to an uploaded file in a process of its own; implemented by `service.intake.pool.ImagePool`."""

    async def add_text(self, document: Document, task: TextTask) -> bytes | memoryview:
        """A searchable PDF, or raise a `DeepSynthError`."""

    def close(self, document: Document) -> None:
        """Free what is kept of a document."""


Render = Callable[[ReadDocument, PdfMaker], Awaitable[bytes | memoryview]]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """A way to write a document."""

    name: str
    """What the form's field `format` names it."""
    media_type: str
    """As the Content-Type is sent, with its character set."""
    extension: str
    """Of a file, with its dot."""
    render: Render
    """Writes a document without blocking the event loop."""
    has_word_confidences: bool = False
    """Whether it shows the confidence of each word."""
    takes_joined: bool = False
    """Whether it can hold the text of a document whose pages are joined."""
    takes_figures: bool = False
    """Whether it can hold figures."""

    @property
    def essence(self) -> str:
        """The media type without parameters."""
        return self.media_type.partition(";")[0]


def in_thread(render: Callable[[ReadDocument], bytes]) -> Render:
    """Run a plain function in a thread, since a long document takes it some time."""

    async def run(document: ReadDocument, _: PdfMaker) -> bytes:
        return await asyncio.to_thread(render, document)

    return run
