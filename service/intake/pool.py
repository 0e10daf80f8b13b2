"""The image processes: a fixed number, each with one thread of the service that talks to it.

A process that crashes, hangs or overruns its memory costs only the page it worked on, and is replaced. One that is
killed or stopped from outside costs nothing but time: its page is tried once more in another one. The threads only move
bytes, so the event loop and the interpreter lock stay free.

A document is sent to a process with its first page and stays open there until `ImagePool.close`. Between two of its
pages the process is free for any other document, so a slow reader blocks no one. A process holds one document, since
its memory limit is meant for one: with more documents than processes, the one that has waited longest for its next page
is evicted, and that page sends it again. So the worst case, more long documents than processes at the same time, costs
what sending the document with each page would. `turns` decides whose page is next.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service import frames
from service.child_exit import describe_exit
from service.errors import (
    DecodeCrashError,
    DecodeKilledError,
    DecodeMemoryError,
    DecodeTimeoutError,
    DecodeUnavailableError,
    DeepSynthError,
    DrainingError,
    EngineError,
)
from service.intake import wire
from service.intake.document import Document
from service.intake.limits import DecodeTask
from service.intake.page_copy import CopyTask, PageCopy
from service.intake.pages import Contents, DecodedPage
from service.intake.preview import MAX_PREVIEW_BYTES, Preview, PreviewTask
from service.intake.print_task import PrintTask
from service.intake.replies import (
    MAX_HEADER_BYTES,
    decode_account,
    decode_contents,
    decode_copy_reply,
    decode_pdf,
    decode_preview_reply,
    decode_reply,
    max_copy_bytes,
    max_reply_bytes,
)
from service.intake.text_layer import TextTask
from service.intake.turns import Turn, Turns
from shared.images.accounting import Account, account

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

START_TIMEOUT_S = 60.0
SLOW_RATIO = 0.25
"""Share of the time limit of a page from which on a document counts as slow."""
STOP_CHECK_S = 1.0
"""Between two looks for processes that a signal has stopped; one that is seen twice is replaced."""
ABANDONED_S = 1.0
"""How long a page whose reader has left may go on; then its process is replaced, which costs a second."""
DYING_S = 5.0
"""How long a process that has closed its connection may take to end, before it is ended; its status tells why it died.
On a busy machine that is more than a moment."""
MAX_SLOW_PAGES = 3
"""A document may use processes for the time limit of so many pages, and in total as long as pages that are not slow."""
MAX_REMEMBERED_FILES = 256
"""Files whose process was killed, newest last; only their hashes are kept."""
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(16 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""glibc then reuses the memory of one page's arrays for the next, instead of asking the kernel for fresh pages: a fifth
of the time that looking at a small page takes, and a quarter where views of A4 in colours are made."""


class ImageProcess:
    """One child and the socket to it; used by one thread at a time."""

    def __init__(self, *, memory_bytes: int, timeout_s: float, max_file_bytes: int, niceness: int = 0) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._is_ready = False
        self._is_ended_by_us = False
        self._was_stopped = False
        self._fault = ""
        self.is_abandoned = False
        """Whether it was ended because its page was not wanted any more."""
        self._stderr = ""
        self.document: Document | None = None
        """What it holds open."""
        self._pipe, theirs = frames.connected()
        arguments = [str(memory_bytes), str(timeout_s), str(max_file_bytes)]
        # The parent's module path is all that the child inherits: the environment may hold secrets.
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 -- our own interpreter and module, no shell
                    [sys.executable, "-P", "-m", "service.intake.child", *arguments],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    # Only until the child is ready; then it closes its end, so the pipe never fills.
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env={
                        "PYTHONPATH": path,
                        "PYTHONDONTWRITEBYTECODE": "1",
                        "OPENBLAS_NUM_THREADS": "1",
                        **_KEEP_MEMORY,
                    },
                    start_new_session=True,
                )
        except OSError:
            self._pipe.close()
            raise
        if niceness:
            # It may have ended already, which `wait_ready` explains.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it has imported everything.

        Raises:
            EngineError: It did not come up.
        """
        if self._is_ready:
            return
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            frames.receive(self._pipe, max_header_bytes=len(wire.READY), max_tail_bytes=0, deadline_s=deadline_s)
            self._is_ready = True
        except TimeoutError as error:
            self.close()
            raise EngineError(f"an image process did not start: not ready after {START_TIMEOUT_S:.0f} s") from error
        except (frames.BrokenFrameError, OSError) as error:
            self.close(DYING_S)
            raise EngineError(f"an image process did not start: {self.cause_of_death}") from error

    def open(self, document: Document) -> Contents:
        """Send a document and find out which pages there are to read; blocks.

        Args:
            document: Replaces the one that this process holds.

        Returns:
            Its pages.

        Raises:
            DeepSynthError: Why there are none; after a crash, a hang or a malformed reply, `is_alive` is false.
        """
        self._make_ready()
        deadline_s = time.monotonic() + self._timeout_s
        with self._faults_explained():
            if self.document is not None:
                # Closed before the next one is received: the memory limit is meant for one document.
                frames.send(self._pipe, wire.CLOSE, deadline_s=deadline_s)
            frames.send(self._pipe, wire.encode_open(document), document.data, deadline_s=deadline_s)
            self.document = document
            document.num_sent += 1
            header, _ = frames.receive(
                self._pipe, max_header_bytes=MAX_HEADER_BYTES, max_tail_bytes=0, deadline_s=deadline_s
            )
            contents = decode_contents(header, document)
            document.is_unopened = False
            return contents

    def decode(self, document: Document, task: DecodeTask) -> DecodedPage:
        """Decode one page; blocks.

        Args:
            document: Sent unless this process already holds it.
            task: Which page, and how.

        Returns:
            The page.

        Raises:
            DeepSynthError: Why there is none; after a crash, a hang or a malformed reply, `is_alive` is false.
        """
        self._hold(document)
        with self._faults_explained():
            return decode_reply(*self._ask(wire.encode_task(task), max_tail_bytes=max_reply_bytes(task)), task)

    def preview(self, document: Document, task: PreviewTask) -> Preview:
        """Make a picture of one page to look at; blocks.

        Args:
            document: Sent unless this process already holds it.
            task: Which page.

        Returns:
            The picture.

        Raises:
            DeepSynthError: Why there is none; after a crash, a hang or a malformed reply, `is_alive` is false.
        """
        self._hold(document)
        with self._faults_explained():
            reply = self._ask(wire.encode_preview(task), max_tail_bytes=MAX_PREVIEW_BYTES)
            return decode_preview_reply(*reply, task, document)

    def copy(self, document: Document, task: CopyTask) -> PageCopy:
        """Copy one page; blocks.

        Args:
            document: Sent unless this process already holds it.
            task: Which page, and how.

        Returns:
            The copy.

        Raises:
            DeepSynthError: Why there is none; after a crash, a hang or a malformed reply, `is_alive` is false.
        """
        self._hold(document)
        with self._faults_explained():
            reply = self._ask(wire.encode_copy(task), max_tail_bytes=max_copy_bytes(document))
            return decode_copy_reply(*reply, task, document)

    def account(self, task: PrintTask) -> Account:
        """Hold a text against print; blocks. Leaves the document that this process holds.

        Args:
            task: The text and the print.

        Returns:
            What the text accounts for.

        Raises:
            DeepSynthError: Why it is not known; after a crash, a hang or a malformed reply, `is_alive` is false.
        """
        self._make_ready()
        with self._faults_explained():
            header, _ = self._ask(*wire.encode_print(task), max_tail_bytes=0)
            return decode_account(header, task)

    def add_text(self, document: Document, task: TextTask) -> memoryview:
        """Make a searchable PDF; blocks for the time of one page for each of its pages, and one more.

        Args:
            document: Sent unless this process already holds it.
            task: The text.

        Returns:
            The PDF.

        Raises:
            DeepSynthError: Why there is none; after a crash, a hang or a malformed reply, `is_alive` is false.
        """
        self._hold(document)
        with self._faults_explained():
            parts = wire.encode_text(task)
            reply = self._ask(*parts, max_tail_bytes=self._memory_bytes, num_shares=task.num_shares)
            return decode_pdf(*reply)

    def _hold(self, document: Document) -> None:
        """Be ready, with this document open."""
        self._make_ready()
        if self.document is not document:
            self.open(document)

    def _ask(
        self, header: bytes, *tail: bytes | memoryview, max_tail_bytes: int, num_shares: float = 1
    ) -> tuple[bytes, memoryview]:
        """Send a frame and receive the reply, within the time of so many pages."""
        deadline_s = time.monotonic() + self._timeout_s * num_shares
        frames.send(self._pipe, header, *tail, deadline_s=deadline_s)
        return frames.receive(
            self._pipe, max_header_bytes=MAX_HEADER_BYTES, max_tail_bytes=max_tail_bytes, deadline_s=deadline_s
        )

    def _make_ready(self) -> None:
        try:
            self.wait_ready()
        except EngineError as error:
            if self._was_killed:
                raise DecodeKilledError("killed by SIGKILL before it was ready") from error
            raise DecodeUnavailableError(str(error)) from error

    @contextlib.contextmanager
    def _faults_explained(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self.close()
            raise DecodeTimeoutError from error
        except (frames.BrokenFrameError, OSError) as error:
            is_malformed = isinstance(error, frames.BrokenFrameError) and not isinstance(
                error, frames.ConnectionClosedError
            )
            if is_malformed:
                self._fault = str(error)
            self.close(0.0 if is_malformed else DYING_S)
            raise self._cause_of_death() from error

    def forget(self) -> None:
        """Let an idle process free its document; does not block."""
        self.document = None
        # A dead process is noticed and replaced before its next task.
        with contextlib.suppress(OSError):
            frames.send_at_once(self._pipe, wire.CLOSE)

    def _cause_of_death(self) -> DeepSynthError:
        status = self._process.returncode
        if status == -signal.SIGXCPU:
            return DecodeTimeoutError("out of CPU time")
        if self._was_stopped:
            return DecodeKilledError("stopped by a signal")
        if self._was_killed:
            return DecodeKilledError("killed by SIGKILL")
        return DecodeCrashError(f"exit {status}")

    @property
    def _was_killed(self) -> bool:
        """Whether SIGKILL ended it that did not come from here."""
        return self._process.returncode == -signal.SIGKILL and not self._is_ended_by_us

    @property
    def cause_of_death(self) -> str:
        """Why it ended, once it is closed."""
        if self._fault:
            return f"ended by the service, as its reply was malformed: {self._fault}"
        if self._is_ended_by_us and self._process.returncode == -signal.SIGKILL:
            return "ended by the service"
        return describe_exit(self._process.returncode, self._stderr)

    @property
    def is_alive(self) -> bool:
        """Whether it can take another task."""
        return self._process.poll() is None and self._pipe.fileno() >= 0

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it, so that it answers nothing until SIGCONT."""
        try:
            # Without WEXITED, so that the exit status stays.
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    def end_stopped(self) -> None:
        """End it because a signal has stopped it."""
        self._was_stopped = True
        self.kill()

    def kill(self) -> None:
        """End it now; the thread that waits for its answer sees the closed socket."""
        self._is_ended_by_us = True
        self._process.kill()

    def close(self, patience_s: float = 0.0) -> None:
        """End it; leaves its exit status and standard error behind.

        Args:
            patience_s: How long it may take to end by itself, so that it keeps the status that tells why it died.
        """
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)
        if self._process.poll() is None:
            self.kill()
            self._process.wait()
        errors = self._process.stderr
        if errors is not None and not errors.closed:
            with errors:
                self._stderr = errors.read().decode(errors="replace")


class ImagePool:
    """Image processes behind an asynchronous interface; as many pages are decoded at a time as there are processes."""

    def __init__(
        self,
        *,
        workers: int,
        memory_bytes: int,
        timeout_s: float,
        max_file_bytes: int,
        niceness: int = 0,
        stop_check_s: float = STOP_CHECK_S,
        on_restart: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._stop_check_s = stop_check_s
        self._watch: asyncio.Task[None] | None = None
        self._make = lambda: ImageProcess(
            memory_bytes=memory_bytes, timeout_s=timeout_s, max_file_bytes=max_file_bytes, niceness=niceness
        )
        self._idle: list[ImageProcess] = []
        """Least recently used first."""
        self._lock = threading.Lock()
        """Guards `_idle`, `Document.is_closed`, `_killed_by` and the documents of idle processes."""
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="image-process")
        self._turns = Turns(workers, timeout_s * SLOW_RATIO)
        self._on_restart = on_restart
        self._all: set[ImageProcess] = set()
        self._stopping = False
        self._killed_by: dict[bytes, None] = {}
        """Hashes of files whose process was killed from outside, oldest first; guarded by `_lock`."""

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return sorted(process.pid for process in self._all)

    @property
    def num_busy(self) -> int:
        """Processes at work."""
        return self._workers - len(self._idle)

    async def start(self) -> None:
        """Start every process and wait for it."""
        loop = asyncio.get_running_loop()
        started = [loop.run_in_executor(self._threads, self._start_one) for _ in range(self._workers)]
        await asyncio.gather(*started)
        self._watch = asyncio.create_task(self._end_stopped(), name="image-process-watch")

    async def _end_stopped(self) -> None:
        """Replace processes that a signal has stopped; without this they are noticed when the time of a page is up."""
        seen: set[ImageProcess] = set()
        while True:
            await asyncio.sleep(self._stop_check_s)
            stopped = {process for process in self._all if process.is_alive and process.is_stopped}
            for process in stopped & seen:
                process.end_stopped()
            seen = stopped - seen

    def _start_one(self) -> None:
        process = self._make()
        self._all.add(process)
        process.wait_ready()
        self._put_back(process)

    async def open(self, document: Document) -> Contents:
        """Open a document in an idle process, or in the next one that becomes idle.

        Args:
            document: The file; the caller passes it to `close` after its last page.

        Returns:
            Its pages.
        """
        return await self._run(document, lambda process: process.open(document))

    async def decode(self, document: Document, task: DecodeTask) -> DecodedPage:
        """Decode one page in an idle process, or in the next one that becomes idle.

        Cancelling gives up waiting; a process that already works on it is ended if it does not finish soon.

        Args:
            document: One that has been opened.
            task: Which page, and how.

        Returns:
            The page.
        """
        return await self._run(document, lambda process: process.decode(document, task))

    async def preview(self, document: Document, task: PreviewTask) -> Preview:
        """Make a picture of one page to look at, in an idle process or in the next one that becomes idle.

        Cancelling gives up waiting; a process that already works on it is ended if it does not finish soon.

        Args:
            document: The file; the caller passes it to `close` afterwards.
            task: Which page.

        Returns:
            The picture.
        """
        return await self._run(document, lambda process: process.preview(document, task))

    async def copy(self, document: Document, task: CopyTask) -> PageCopy:
        """Copy one page in an idle process, or in the next one that becomes idle.

        Cancelling gives up waiting; a process that already works on it is ended if it does not finish soon.

        Args:
            document: One that has been opened.
            task: Which page, and how.

        Returns:
            The copy.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._with_process, document, lambda process: process.copy(document, task), []
        )

    async def account(self, document: Document, task: PrintTask) -> Account:
        """Hold a text against the print of a page, in a process that is idle, else in a thread of this one.

        It takes as much of the interpreter lock as all else that the service does for a page. But a page that has been
        read does not wait for others to be decoded.

        Args:
            document: The page's, whose turn it takes.
            task: The text and the print.

        Returns:
            What the text accounts for.
        """
        if self._turns.are_all_taken:
            return await asyncio.to_thread(account, task.text, task.lines)
        try:
            return await self._run(document, lambda process: process.account(task))
        except DeepSynthError as error:
            # The page has been read, so the processes' troubles need not cost it.
            logger.warning("a text is held against its page here", extra={"fields": {"code": error.code}})
            return await asyncio.to_thread(account, task.text, task.lines)

    async def add_text(self, document: Document, task: TextTask) -> memoryview:
        """Make a searchable PDF in an idle process, or in the next one that becomes idle.

        Args:
            document: The file; the caller passes it to `close` afterwards.
            task: The text.

        Returns:
            The PDF.
        """
        return await self._run(document, lambda process: process.add_text(document, task))

    def close(self, document: Document) -> None:
        """Free the process that holds a document, at once or as soon as it has finished the page it works on."""
        with self._lock:
            document.is_closed = True
            for process in self._idle:
                if process.document is document:
                    process.forget()

    async def _run(self, document: Document, work: Callable[[ImageProcess], _T]) -> _T:
        self._check_total(document)
        turn = await self._turns.take(document)
        start_s = time.monotonic()
        loop = asyncio.get_running_loop()
        at_work: list[ImageProcess] = []
        """The process, while it works."""

        def end(_: object) -> None:
            # Not when the caller gives up, but when the process is idle. The loop may be gone by then.
            duration_s = time.monotonic() - start_s
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end_turn, turn, duration_s)

        try:
            future = self._threads.submit(self._with_process, document, work, at_work)
        except RuntimeError as error:
            self._turns.give_back(turn, 0.0)
            raise DrainingError("the image processes were stopped") from error
        future.add_done_callback(end)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            loop.call_later(ABANDONED_S, self._abandon, at_work)
            raise

    def _check_total(self, document: Document) -> None:
        """Refuse a document that has used more than its share, so that its rest costs no one else."""
        limit_s = self._timeout_s * (MAX_SLOW_PAGES + SLOW_RATIO * document.num_turns)
        if document.worked_s > limit_s:
            raise DecodeTimeoutError("the document has used all of its time", public={"limit_s": round(limit_s)})

    def _end_turn(self, turn: Turn, duration_s: float) -> None:
        turn.document.worked_s += duration_s
        turn.document.num_turns += 1
        self._turns.give_back(turn, duration_s)

    def _abandon(self, at_work: list[ImageProcess]) -> None:
        """End a process that still works for a reader who has left."""
        with self._lock:
            for process in at_work:
                process.is_abandoned = True
                process.kill()

    def _with_process(self, document: Document, work: Callable[[ImageProcess], _T], at_work: list[ImageProcess]) -> _T:
        try:
            return self._try(document, work, at_work, is_last=False)
        except (DecodeKilledError, DecodeUnavailableError):
            # From outside, so another process may finish it.
            return self._try(document, work, at_work, is_last=True)

    def _try(
        self, document: Document, work: Callable[[ImageProcess], _T], at_work: list[ImageProcess], *, is_last: bool
    ) -> _T:
        process = self._take(document)
        try:
            if not process.is_alive:
                process = self._replace(process, "died_idle")
            at_work.append(process)
            return work(process)
        except DeepSynthError as error:
            if self._stopping and not process.is_alive:
                raise DrainingError("the image processes were stopped") from error
            had_document = process.document is document
            if not process.is_alive:
                process = self._replace(process, "abandoned" if process.is_abandoned else error.code)
            if is_last and isinstance(error, DecodeKilledError) and had_document and self._has_killed_before(document):
                raise DecodeMemoryError("killed by SIGKILL again") from error
            raise
        finally:
            with self._lock:
                at_work.clear()
            self._put_back(process)

    def _has_killed_before(self, document: Document) -> bool:
        """Whether two processes were killed before while they decoded the same bytes; remembers them.

        That may be chance: the kernel frees memory by ending any process. Two more, and the file is the likely cause.
        """
        digest = hashlib.sha256(document.data).digest()
        with self._lock:
            is_known = self._killed_by.pop(digest, True) is None
            self._killed_by[digest] = None
            if len(self._killed_by) > MAX_REMEMBERED_FILES:
                del self._killed_by[next(iter(self._killed_by))]
        return is_known

    def _take(self, document: Document) -> ImageProcess:
        """The idle process that holds the document, else one that holds none, else the least recently used."""
        with self._lock:
            # Never empty: there are as many threads as processes.
            process = min(self._idle, key=lambda idle: (idle.document is not document, idle.document is not None))
            self._idle.remove(process)
        return process

    def _put_back(self, process: ImageProcess) -> None:
        with self._lock:
            if process.document is not None and process.document.is_closed:
                process.forget()
            self._idle.append(process)

    def _replace(self, dead: ImageProcess, reason: str) -> ImageProcess:
        dead.close()
        self._on_restart(reason)
        fields = {"reason": reason, "cause": dead.cause_of_death}
        logger.warning("image process replaced", extra={"fields": fields})
        try:
            fresh = self._make()
        except OSError as error:
            raise DecodeUnavailableError(f"no image process could be started: {error.strerror}") from error
        self._all.discard(dead)
        self._all.add(fresh)
        return fresh

    async def stop(self) -> None:
        """End every process; pages at work are lost."""
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        for process in list(self._all):
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.close()
