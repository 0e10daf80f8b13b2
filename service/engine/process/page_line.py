"""Which pages the engine's process has, and which are held back: suspects after a death, one at a time.

Knows neither processes nor time. Runs on the event loop. Free of torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.engine.protocol import SequenceDelta, SequenceEvent, SequenceRequest


@dataclass(eq=False, slots=True)
class OpenPage:
    """A page that waits for its last event."""

    request: SequenceRequest
    inbox: asyncio.Queue[SequenceEvent] = field(default_factory=asyncio.Queue)
    digest: bytes | None = None
    """Of its content, once that was needed."""
    is_suspect: bool = False
    """Whether its content was in work when the engine died; read alone."""
    num_losses: int = 0
    """How often it was lost with the engine."""
    _texts: list[str] = field(default_factory=list)
    """What its reader has been given."""
    _due: str = ""
    """What of that the engine has still to repeat."""

    def begin_again(self) -> None:
        """It is to be read once more; its reader gets only what it has not had."""
        self.num_losses += 1
        self._due = "".join(self._texts)

    def take(self, event: SequenceEvent) -> bool:
        """Give an event to the reader.

        Args:
            event: Of this page.

        Returns:
            False if the page now reads differently from what its reader has had, which is then not given.
        """
        if not isinstance(event, SequenceDelta):
            if self._due and event.kind == "result":
                return False
            self.inbox.put_nowait(event)
            return True
        if not self.request.is_streamed:
            # Its reader takes the text from the result.
            self.inbox.put_nowait(event)
            return True
        text = event.text
        if self._due:
            shared = min(len(self._due), len(text))
            if text[:shared] != self._due[:shared]:
                return False
            self._due, text = self._due[shared:], text[shared:]
        if text:
            self._texts.append(text)
            self.inbox.put_nowait(SequenceDelta(event.sequence_id, text))
        return True


class PageLine:
    """Open pages on their way to the engine.

    Invariant: a suspect is with the engine only while no other page is.
    """

    def __init__(self) -> None:
        self._held: dict[str, OpenPage] = {}
        self._sent: dict[str, OpenPage] = {}

    def __len__(self) -> int:
        """Pages without a last event."""
        return len(self._held) + len(self._sent)

    def __iter__(self) -> Iterator[OpenPage]:
        """Every page, those with the engine first."""
        yield from (*self._sent.values(), *self._held.values())

    @property
    def sent(self) -> list[OpenPage]:
        """Pages with the engine, in the order in which they were sent."""
        return list(self._sent.values())

    def find_sent(self, sequence_id: str) -> OpenPage | None:
        """A page with the engine, or None."""
        return self._sent.get(sequence_id)

    def add(self, page: OpenPage) -> None:
        """Take a new page in."""
        self._held[page.request.sequence_id] = page

    def remove(self, page: OpenPage) -> bool:
        """Forget a page; whether the engine had it."""
        name = page.request.sequence_id
        self._held.pop(name, None)
        return self._sent.pop(name, None) is not None

    def take_back(self) -> list[OpenPage]:
        """The engine has gone: hold its pages, before those that are held already.

        Returns:
            These pages, in the order in which they were sent.
        """
        lost = self.sent
        self._held = {**self._sent, **self._held}
        self._sent = {}
        return lost

    def next_due(self) -> OpenPage | None:
        """The next page to send, which then counts as sent; None: none may be sent now."""
        if not self._held or any(page.is_suspect for page in self._sent.values()):
            return None
        page = next((page for page in self._held.values() if page.is_suspect), None)
        if page is None:
            page = next(iter(self._held.values()))
        elif self._sent:
            return None
        name = page.request.sequence_id
        self._sent[name] = self._held.pop(name)
        return page
