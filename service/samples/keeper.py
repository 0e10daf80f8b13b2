"""Keeps the pages of answered documents in the background, and takes corrections of them.

An answer is never late and never fails for its samples: documents wait in a bounded queue, pages are decoded once more
in an image process of their own with low priority, and what cannot be kept is counted. One thread owns the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from tarfile import BLOCKSIZE, NUL, TarInfo
from typing import Protocol, TypeVar

from opentelemetry import trace

from service.errors import (
    DeepSynthError,
    InvalidFieldError,
    SampleOptedOutError,
    SampleStorageError,
)
from service.intake.document import Document
from service.intake.limits import IntakeLimits
from service.intake.page_copy import CopyTask, PageCopy
from service.intake.pages import Contents
from service.samples.answered import AnsweredDocument
from service.samples.metrics import Lost, SampleObserver
from service.samples.store import QuotaError, SampleStore
from shared.contract.samples import PAGES_FOLDER, AnswerPage

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Files that wait to be kept; one document may be larger."""
MAX_REMEMBERED_REFUSALS = 10_000
"""Ids of answers whose clients opted out, newest last: nothing else of them is known."""
EXPIRE_EVERY_S = 60.0
STOP_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class PageCopier(Protocol):
    """Copies pages; implemented by `service.intake.pool.ImagePool`."""

    async def start(self) -> None:
        """Start."""

    async def stop(self) -> None:
        """Stop."""

    async def open(self, document: Document) -> Contents:
        """Find out which pages a document has."""

    async def copy(self, document: Document, task: CopyTask) -> PageCopy:
        """Copy one page."""

    def close(self, document: Document) -> None:
        """Free what is kept of a document between its pages."""


class SampleKeeper:
    """Keeps samples as long as the app runs.

    Args:
        store: The folder.
        copier: Processes of its own, so that no request waits for them.
        limits: Bounds on documents, as those that they were read with.
        observer: Counts.
        are_thumbnails: Keep a small picture of each page instead of the page.
    """

    def __init__(
        self,
        store: SampleStore,
        copier: PageCopier,
        limits: IntakeLimits,
        observer: SampleObserver,
        *,
        are_thumbnails: bool,
    ) -> None:
        self._store = store
        self._copier = copier
        self._limits = limits
        self._observer = observer
        self.are_thumbnails = are_thumbnails
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="samples")
        self._waiting: OrderedDict[str, tuple[AnsweredDocument, asyncio.Future[None], trace.SpanContext]] = (
            OrderedDict()
        )
        """By id of the answer, the next one in front; stays here until it has been kept."""
        self._waiting_bytes = 0
        self._has_more = asyncio.Event()
        self._being_read: dict[str, bool] = {}
        """Answers whose pages are still read, and whether they have been erased."""
        self._opted_out: OrderedDict[str, None] = OrderedDict()
        self._num_erased = 0
        """Samples that were counted as erased."""
        self._task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Documents that have not been kept yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Open the folder; a `ConfigurationError` says why it cannot be used."""
        await self._copier.start()
        await self._in_thread(self._store.open)
        await self._expire()
        self._task = asyncio.create_task(self._run(), name="samples")

    async def stop(self) -> None:
        """Keep what waits, for `STOP_TIMEOUT_S` at most, and close the folder."""
        if self._task is not None:
            waiting = [future for _, future, _ in self._waiting.values()]
            if waiting:
                await asyncio.wait(waiting, timeout=STOP_TIMEOUT_S)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for document, future, _ in self._waiting.values():
            self._observer.lost(Lost.BUSY, len(document.readings))
            future.cancel()
        await self._copier.stop()
        await self._in_thread(self._store.close)
        self._thread.shutdown()

    @contextlib.contextmanager
    def reading(self, answer_id: str) -> Iterator[None]:
        """Around reading and offering an answer: a stream tells its id before its end, so it may be erased by then."""
        self._being_read[answer_id] = False
        try:
            yield
        finally:
            del self._being_read[answer_id]

    def offer(self, document: AnsweredDocument) -> None:
        """Keep an answered document soon, unless it was erased while it was read; returns at once."""
        num_bytes = document.num_bytes
        if not document.readings or self._being_read.get(document.answer_id):
            return
        if self._waiting and self._waiting_bytes + num_bytes > MAX_WAITING_BYTES:
            self._observer.lost(Lost.BUSY, len(document.readings))
            return
        kept = asyncio.get_running_loop().create_future()
        self._waiting[document.answer_id] = (document, kept, trace.get_current_span().get_span_context())
        self._waiting_bytes += num_bytes
        self._has_more.set()

    def opt_out(self, answer_id: str) -> None:
        """Remember that nothing of an answer may be stored, so that a correction of it is refused with that reason."""
        self._opted_out[answer_id] = None
        if len(self._opted_out) > MAX_REMEMBERED_REFUSALS:
            self._opted_out.popitem(last=False)

    async def correct(self, answer_id: str, page: int | None, text: str) -> int:
        """Store what a person says is on a page.

        Args:
            answer_id: Of the answer that was corrected.
            page: In the document; None for the only page of an answer.
            text: The whole page's.

        Returns:
            The page.

        Raises:
            SampleOptedOutError: The request opted out.
            SampleStorageError: It could not be written.
            InvalidFieldError: The answer has several pages, and none is named.
        """
        await self._settled(answer_id)
        try:
            corrected = await self._in_thread(partial(self._store.correct, answer_id, page, text))
        except ValueError as error:
            expected = f"the number of the page, as the answer has {error} pages"
            raise InvalidFieldError(public={"field": "page", "expected": expected}) from error
        except QuotaError as error:
            self._observer.lost(Lost.QUOTA)
            raise SampleStorageError from error
        except OSError as error:
            self._observer.lost_to(error)
            raise SampleStorageError from error
        self._observer.done("corrected")
        self._show_size()
        return corrected

    async def erase(self, answer_id: str) -> list[int]:
        """Erase every page of an answer; one that waits, or is still read, is not kept at all.

        Args:
            answer_id: Of the answer.

        Returns:
            The pages; none of an answer that is still read.

        Raises:
            SampleOptedOutError: The request opted out, so there is nothing.
            SampleStorageError: They could not be erased.
        """
        if answer_id in self._being_read:
            self._being_read[answer_id] = True
            return []
        if answer_id in self._waiting and answer_id != next(iter(self._waiting)):
            document, kept, _ = self._waiting.pop(answer_id)
            self._waiting_bytes -= document.num_bytes
            kept.set_result(None)
            return sorted(document.readings)
        await self._settled(answer_id)
        try:
            return await self._in_thread(partial(self._store.erase, answer_id))
        except OSError as error:
            self._observer.not_erased(error)
            raise SampleStorageError from error
        finally:
            self._show_size()

    async def export(self, *, only_corrected: bool) -> AsyncIterator[bytes]:
        """Give all samples away, one after another.

        Args:
            only_corrected: Leave out those without a correction.

        Yields:
            Pieces of a tar file that unpacks to a sample folder.

        Raises:
            SampleStorageError: A sample could not be read, or that it is could not be recorded.
        """
        for sha256 in await self._in_thread(partial(self._store.listed, only_corrected=only_corrected)):
            try:
                files = await self._in_thread(partial(self._store.read, sha256))
            except OSError as error:
                self._observer.not_read(error)
                raise SampleStorageError from error
            if not files:
                continue
            self._observer.done("read")
            for name, data in files:
                member = TarInfo(f"{PAGES_FOLDER}/{name}")
                member.size, member.mode, member.mtime = len(data), 0o600, int(datetime.now(UTC).timestamp())
                yield member.tobuf() + data + NUL * (-len(data) % BLOCKSIZE)
        yield NUL * (2 * BLOCKSIZE)

    async def _settled(self, answer_id: str) -> None:
        """Wait until an answer has been kept, if it is about to be; raises `SampleOptedOutError`."""
        if answer_id in self._opted_out:
            raise SampleOptedOutError
        if answer_id in self._waiting:
            await asyncio.wait({self._waiting[answer_id][1]})

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self) -> None:
        expiry_s = time.monotonic() + EXPIRE_EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, expiry_s - time.monotonic())):
                    await self._has_more.wait()
            if self._waiting:
                await self._keep_next()
            if not self._waiting:
                self._has_more.clear()
            # Between documents, so that samples expire however busy the service is.
            if time.monotonic() >= expiry_s:
                await self._expire()
                expiry_s = time.monotonic() + EXPIRE_EVERY_S

    async def _keep_next(self) -> None:
        answer_id, (document, future, request) = next(iter(self._waiting.items()))
        try:
            with self._observer.persisting(request):
                await self._keep(document)
        except DeepSynthError as error:
            self._observer.lost(Lost.IMAGE, len(document.readings), error.code)
        except Exception:
            # Boundary of this task: one document must not end it.
            logger.exception("a document was not kept")
            self._observer.lost(Lost.FAULT, len(document.readings))
        finally:
            if not future.done():
                future.set_result(None)
        del self._waiting[answer_id]
        self._waiting_bytes -= document.num_bytes

    async def _keep(self, answered: AnsweredDocument) -> None:
        num_before = 0
        for data in answered.files:
            document = Document(data, self._limits, answered.selection)
            try:
                pages = (await self._copier.open(document)).pages
                for page in pages:
                    if num_before + page in answered.readings:
                        await self._keep_page(document, page, num_before + page, answered)
                num_before += len(pages)
            finally:
                self._copier.close(document)

    async def _keep_page(self, document: Document, page: int, number: int, answered: AnsweredDocument) -> None:
        answer = AnswerPage(id=answered.answer_id, page=number, num_pages=answered.num_pages, task=answered.task)
        is_thumbnail = self.are_thumbnails
        try:
            copy = await self._copier.copy(document, CopyTask(page, is_thumbnail))
            reading = answered.readings[number]
            await self._in_thread(partial(self._store.keep, answer, copy, reading, is_thumbnail=is_thumbnail))
        except DeepSynthError as error:
            self._observer.lost(Lost.IMAGE, detail=error.code)
        except QuotaError:
            self._observer.lost(Lost.QUOTA)
        except OSError as error:
            self._observer.lost_to(error)
        else:
            self._observer.done("stored")
        self._show_size()

    async def _expire(self) -> None:
        try:
            await self._in_thread(self._store.expire)
        except OSError as error:
            self._observer.not_erased(error)
        self._show_size()

    def _show_size(self) -> None:
        num_erased = self._store.num_erased
        self._observer.done("erased", num_erased - self._num_erased)
        self._num_erased = num_erased
        self._observer.size(len(self._store), self._store.num_bytes)
