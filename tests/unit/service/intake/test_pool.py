"""The decoding processes, really started: what a file can do to one of them, and what it cannot do to the rest."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from pypdf import PdfReader

from service.errors import (
    DecodeCrashError,
    DecodeKilledError,
    DecodeMemoryError,
    DecodeTimeoutError,
    DecodeUnavailableError,
    DeepSynthError,
    DrainingError,
    EngineError,
    TooManyPixelsError,
    UndecodableError,
)
from service.frames import BrokenFrameError
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pages import DecodedPage
from service.intake.pool import ImagePool, ImageProcess
from service.intake.print_task import PrintTask
from service.intake.text_layer import TextLine, TextPage, TextTask
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from shared.images.accounting import account
from shared.images.page_ink import InkLine
from tests.support.pdf import make_pdf
from tests.support.service import eventually, png

MIB = 1024 * 1024
ORDER = DecodeTask(1, Mode.GUNDAM, GeometryConfig())


@contextlib.asynccontextmanager
async def running_pool(
    workers: int = 1, timeout_s: float = 120.0, stop_check_s: float = 600.0
) -> AsyncIterator[tuple[ImagePool, list[str]]]:
    restarts: list[str] = []
    pool = ImagePool(
        workers=workers,
        memory_bytes=1024 * MIB,
        timeout_s=timeout_s,
        max_file_bytes=20 * MIB,
        stop_check_s=stop_check_s,  # long, as tests stop processes to hold them
        on_restart=restarts.append,
    )
    try:
        await pool.start()
        yield pool, restarts
    finally:
        await pool.stop()


def state_of(pid: int) -> str:
    """The kernel's letter for a process's state; empty when it is gone."""
    path = Path(f"/proc/{pid}/stat")
    return path.read_text().rpartition(")")[2].split()[0] if path.exists() else ""


def is_stopped(pid: int) -> bool:
    return state_of(pid) in ("t", "T")


def environment_names(pid: int) -> set[bytes]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    return {entry.partition(b"=")[0] for entry in entries}


async def test_page_comes_out_of_a_process() -> None:
    async with running_pool() as (pool, restarts):
        page = await pool.decode(Document(png(), IntakeLimits()), ORDER)
    assert (page.width_px, page.height_px, restarts) == (320, 200, [])


async def test_refusal_comes_out_with_its_public_facts_and_costs_no_process() -> None:
    async with running_pool() as (pool, restarts):
        (pid,) = pool.pids
        with pytest.raises(UndecodableError):
            await pool.decode(Document(png()[:200], IntakeLimits()), ORDER)
        with pytest.raises(TooManyPixelsError) as refusal:
            await pool.decode(Document(png(), IntakeLimits(max_pixels=1000)), ORDER)
        assert refusal.value.public["max_pixels"] == 1000
        assert (pool.pids, restarts) == ([pid], [])


@pytest.mark.parametrize(
    ("number", "error", "reason"),
    [
        (signal.SIGSEGV, DecodeCrashError, "decode_crash"),
        (signal.SIGXCPU, DecodeTimeoutError, "decode_timeout"),
    ],
)
async def test_death_at_work_costs_one_order_and_is_told_apart(
    number: signal.Signals, error: type[DeepSynthError], reason: str
) -> None:
    async with running_pool() as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: is_stopped(pid))
        victim = asyncio.create_task(pool.decode(Document(png(), IntakeLimits()), ORDER))
        await eventually(lambda: pool.num_busy == 1)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(error):
            await victim
        assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320
        assert restarts == [reason]
        assert pool.pids != [pid]


@pytest.fixture
def killed_at_work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes to kill from outside once they have a file, how many; counts down."""
    left = [0]
    decode = ImageProcess.decode

    def decode_if_alive(self: ImageProcess, document: Document, task: DecodeTask) -> DecodedPage:
        if left[0]:
            left[0] -= 1
            self.open(document)
            os.kill(self.pid, signal.SIGKILL)
        return decode(self, document, task)

    monkeypatch.setattr(ImageProcess, "decode", decode_if_alive)
    return left


async def test_a_page_whose_process_is_killed_from_outside_is_tried_once_more(killed_at_work: list[int]) -> None:
    async with running_pool() as (pool, restarts):
        for _ in range(3):
            killed_at_work[0] = 1
            assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320
        assert restarts == ["decode_killed"] * 3


async def test_a_file_is_held_responsible_when_its_processes_are_killed_each_time_it_is_sent(
    killed_at_work: list[int],
) -> None:
    async with running_pool() as (pool, restarts):

        async def send(text: str) -> DeepSynthError:
            killed_at_work[0] = 2
            with pytest.raises(DeepSynthError) as caught:
                await pool.decode(Document(png(text), IntakeLimits()), ORDER)
            return caught.value

        first = await send("one")
        assert (type(first), first.status, first.retryable) == (DecodeKilledError, 503, True)
        assert isinstance(await send("two"), DecodeKilledError)
        again = await send("one")
        assert (type(again), again.status, again.retryable) == (DecodeMemoryError, 422, False)
        assert restarts == ["decode_killed"] * 6


async def test_a_stopped_process_is_replaced_and_its_page_tried_once_more() -> None:
    async with running_pool(timeout_s=240.0, stop_check_s=0.1) as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320
        assert time.monotonic() - began_s < 120.0
        assert restarts in (["decode_killed"], ["died_idle"])
        assert state_of(pid) == ""


async def test_without_descriptors_for_a_process_the_client_is_told_to_come_back() -> None:
    async with running_pool() as (pool, _):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: state_of(pid) == "Z")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            with pytest.raises(DecodeUnavailableError) as caught:
                await pool.decode(Document(png(), IntakeLimits()), ORDER)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (caught.value.status, caught.value.retryable) == (503, True)
        assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320


async def test_a_page_whose_reader_has_left_is_not_decoded_to_its_end() -> None:
    async with running_pool() as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        given_up = asyncio.create_task(pool.decode(Document(png(), IntakeLimits()), ORDER))
        await eventually(lambda: pool.num_busy == 1)
        given_up.cancel()
        assert (await pool.decode(Document(png("next"), IntakeLimits()), ORDER)).width_px == 320
        assert restarts == ["abandoned"]


async def test_a_document_may_use_so_much_time_and_no_more() -> None:
    timeout_s = 60.0
    async with running_pool(timeout_s=timeout_s) as (pool, _):
        document = long_document()
        await pool.decode(document, page_task(0))
        assert document.num_turns == 1
        assert 0 < document.worked_s < timeout_s
        document.worked_s = timeout_s * (3 + 0.25) + 0.01
        with pytest.raises(DecodeTimeoutError) as caught:
            await pool.decode(document, page_task(1))
        assert caught.value.public == {"limit_s": 195}
        assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320


async def cut_off(pool: ImagePool) -> tuple[ImageProcess, asyncio.Task[DecodedPage]]:
    """The only process, stopped at work on a page, with the connection closed as its end would close it."""
    (process,) = pool._all
    os.kill(process.pid, signal.SIGSTOP)
    await eventually(lambda: is_stopped(process.pid))
    reading = asyncio.create_task(pool.decode(Document(png(), IntakeLimits()), ORDER))
    await eventually(lambda: pool.num_busy == 1)
    process._pipe.shutdown(socket.SHUT_RD)
    return process, reading


async def test_a_process_that_is_killed_from_outside_and_takes_long_to_end_costs_no_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.intake.pool.DYING_S", 60.0)
    async with running_pool() as (pool, restarts):
        process, reading = await cut_off(pool)
        await asyncio.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        assert (await reading).width_px == 320
        assert restarts == ["decode_killed"]


async def test_a_process_that_closes_its_connection_and_stays_is_ended_and_its_file_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.intake.pool.DYING_S", 0.1)
    async with running_pool() as (pool, _):
        _, reading = await cut_off(pool)
        with pytest.raises(DecodeCrashError):
            await reading


async def test_log_says_what_was_wrong_with_a_reply(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise BrokenFrameError("no numbers of a line")

    monkeypatch.setattr("service.intake.pool.decode_reply", refuse)
    async with running_pool() as (pool, _):
        with pytest.raises(DecodeCrashError):
            await pool.decode(Document(png(), IntakeLimits()), ORDER)
        await eventually(lambda: any(record.message == "image process replaced" for record in caplog.records))
    causes = [record.fields["cause"] for record in caplog.records if record.message == "image process replaced"]  # type: ignore[attr-defined]
    assert causes == ["ended by the service, as its reply was malformed: no numbers of a line"]


async def test_hung_process_is_killed_when_its_time_is_up() -> None:
    async with running_pool(timeout_s=0.5) as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DecodeTimeoutError):
            await pool.decode(Document(png(), IntakeLimits()), ORDER)
        assert restarts == ["decode_timeout"]
        assert state_of(pid) == ""


async def test_process_that_died_idle_is_replaced_before_the_next_order() -> None:
    async with running_pool() as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: state_of(pid) == "Z")
        assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320
        assert restarts == ["died_idle"]


async def test_orders_run_side_by_side_and_each_gets_its_own_page() -> None:
    sizes = [(100 + number, 50) for number in range(12)]
    async with running_pool(workers=2) as (pool, _):
        pages = await asyncio.gather(*(pool.decode(Document(png(size=size), IntakeLimits()), ORDER) for size in sizes))
    assert [page.width_px for page in pages] == [size[0] for size in sizes]


def page_task(position: int) -> DecodeTask:
    return replace(ORDER, page=position + 1)


def long_document() -> Document:
    return Document(make_pdf(["one", "two", "three", "four"]), IntakeLimits())


def held_by(pool: ImagePool) -> list[Document | None]:
    return [process.document for process in pool._all]


async def test_document_is_sent_once_for_all_its_pages() -> None:
    async with running_pool(workers=2) as (pool, _):
        documents = [long_document(), long_document()]
        for position in range(4):
            for document in documents:
                assert (await pool.decode(document, page_task(position))).page == position + 1
        assert [document.num_sent for document in documents] == [1, 1]
        for document in documents:
            pool.close(document)
        assert held_by(pool) == [None, None]


async def test_documents_share_one_process_and_the_one_that_waits_longest_is_evicted() -> None:
    async with running_pool() as (pool, restarts):
        slow, quick = long_document(), Document(png(), IntakeLimits())
        assert (await pool.decode(slow, page_task(0))).page == 1
        assert (await pool.decode(quick, ORDER)).width_px == 320
        pool.close(quick)
        others = [long_document(), long_document()]
        pages = await asyncio.gather(
            *(pool.decode(document, page_task(at)) for at in range(1, 4) for document in (slow, *others))
        )
        assert [page.page for page in pages] == [2, 2, 2, 3, 3, 3, 4, 4, 4]
        # At most once a page; turns are shared by time, so that a document may have two in a row.
        assert 2 <= slow.num_sent <= 4
        assert (quick.num_sent, restarts) == (1, [])


async def test_document_with_a_free_process_evicts_none() -> None:
    async with running_pool(workers=2) as (pool, _):
        slow = long_document()
        await pool.decode(slow, page_task(0))
        for _ in range(3):
            document = Document(png(), IntakeLimits())
            await pool.decode(document, ORDER)
            pool.close(document)
        await pool.decode(slow, page_task(1))
        assert slow.num_sent == 1


async def test_cancelling_frees_the_process_for_the_next_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.intake.pool.ABANDONED_S", 60.0)
    async with running_pool() as (pool, restarts):
        (pid,) = pool.pids
        document = long_document()
        await pool.decode(document, page_task(0))
        os.kill(pid, signal.SIGSTOP)
        given_up = asyncio.create_task(pool.decode(document, page_task(1)))
        await eventually(lambda: pool.num_busy == 1)
        given_up.cancel()
        pool.close(document)
        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: pool.num_busy == 0)
        assert held_by(pool) == [None]
        assert (await pool.decode(Document(png(), IntakeLimits()), ORDER)).width_px == 320
        assert restarts == []


async def test_death_in_the_middle_costs_one_page_and_the_next_one_sends_the_document_again() -> None:
    async with running_pool() as (pool, restarts):
        document = long_document()
        await pool.decode(document, page_task(0))
        os.kill(pool.pids[0], signal.SIGSTOP)
        victim = asyncio.create_task(pool.decode(document, page_task(1)))
        await eventually(lambda: pool.num_busy == 1)
        os.kill(pool.pids[0], signal.SIGSEGV)
        os.kill(pool.pids[0], signal.SIGCONT)
        with pytest.raises(DecodeCrashError):
            await victim
        assert (await pool.decode(document, page_task(2))).page == 3
        os.kill(pool.pids[0], signal.SIGKILL)
        await eventually(lambda: state_of(pool.pids[0]) == "Z")
        assert (await pool.decode(document, page_task(3))).page == 4
        assert (document.num_sent, restarts) == (3, ["decode_crash", "died_idle"])


TASK = PrintTask("one line", (InkLine((10, 10, 90, 22), (30, 40), 9.0), InkLine((10, 60, 250, 72), (70, 90, 60), 9.0)))


async def test_text_is_held_against_print_in_a_process_that_keeps_its_document() -> None:
    async with running_pool() as (pool, restarts):
        document = Document(png(), IntakeLimits())
        await pool.open(document)
        found = await pool.account(Document(png("other"), IntakeLimits()), TASK)
        assert found == account(TASK.text, TASK.lines)
        assert 0 < found.coverage < 1
        await pool.decode(document, ORDER)
        assert (document.num_sent, restarts) == (1, [])


async def test_text_is_held_against_print_without_waiting_for_a_page_that_is_decoded() -> None:
    async with running_pool() as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        decoding = asyncio.create_task(pool.decode(Document(png(), IntakeLimits()), ORDER))
        await eventually(lambda: pool.num_busy == 1)
        assert await pool.account(Document(png(), IntakeLimits()), TASK) == account(TASK.text, TASK.lines)
        assert not decoding.done()
        os.kill(pid, signal.SIGCONT)
        await decoding
        assert restarts == []


async def test_text_is_held_against_print_although_no_process_can_do_it() -> None:
    async with running_pool(timeout_s=0.5) as (pool, restarts):
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        assert await pool.account(Document(png(), IntakeLimits()), TASK) == account(TASK.text, TASK.lines)
        assert restarts == ["decode_timeout"]


TEXT = TextTask((TextPage(1, 320, 200, (TextLine("found", (0, 0, 320, 200)),)),))


async def test_searchable_pdf_comes_out_of_a_process() -> None:
    async with running_pool() as (pool, restarts):
        document = Document(png(), IntakeLimits())
        pdf = bytes(await pool.add_text(document, TEXT))
        pool.close(document)
        assert held_by(pool) == [None]
        assert PdfReader(io.BytesIO(pdf)).pages[0].extract_text().strip() == "found"
        with pytest.raises(UndecodableError):
            await pool.add_text(Document(b"%PDF-1.7\nnothing", IntakeLimits()), TEXT)
        assert restarts == []


async def test_process_that_hangs_over_a_pdf_is_killed_when_the_time_of_its_pages_is_up() -> None:
    async with running_pool(timeout_s=2.0) as (pool, restarts):
        document = Document(png(), IntakeLimits())
        await pool.open(document)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        start_s = time.monotonic()
        with pytest.raises(DecodeTimeoutError):
            await pool.add_text(document, TEXT)
        assert time.monotonic() - start_s >= 4.0
        assert restarts == ["decode_timeout"]


async def test_process_is_confined() -> None:
    async with running_pool() as (pool, _):
        (pid,) = pool.pids
        assert resource.prlimit(pid, resource.RLIMIT_AS) == (1024 * MIB, 1024 * MIB)
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (0, 0)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert environment_names(pid) <= {
            b"PYTHONPATH",
            b"PYTHONDONTWRITEBYTECODE",
            b"OPENBLAS_NUM_THREADS",
            b"MALLOC_MMAP_THRESHOLD_",
            b"MALLOC_TRIM_THRESHOLD_",
            b"LC_CTYPE",
        }


async def test_process_that_cannot_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The broken package is only on the module path of this process, so the child must have inherited that.
    (tmp_path / "pypdfium2.py").write_text("raise ImportError('libpdfium.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"did not start: ImportError: libpdfium.so: cannot open shared object file$"):
        async with running_pool():
            pass


async def test_no_process_is_left_after_the_end() -> None:
    async with running_pool(workers=2) as (pool, _):
        pids = pool.pids
    assert [state_of(pid) for pid in pids] == ["", ""]


async def test_stop_does_not_wait_for_a_process_that_hangs() -> None:
    async with asyncio.timeout(120):
        async with running_pool(timeout_s=240.0) as (pool, _):
            (pid,) = pool.pids
            os.kill(pid, signal.SIGSTOP)
            victim = asyncio.create_task(pool.decode(Document(png(), IntakeLimits()), ORDER))
            await eventually(lambda: pool.num_busy == 1)
    with pytest.raises(DrainingError):
        await victim


def test_a_process_that_cannot_be_started_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[socket.socket] = []
    make_pair = socket.socketpair

    def noted_pair() -> tuple[socket.socket, socket.socket]:
        ends.extend(make_pair())
        return ends[0], ends[1]

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no descriptors")

    monkeypatch.setattr("socket.socketpair", noted_pair)
    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.raises(OSError, match="no descriptors"):
        ImageProcess(memory_bytes=1024 * MIB, timeout_s=1.0, max_file_bytes=MIB)
    assert [end.fileno() for end in ends] == [-1, -1]
