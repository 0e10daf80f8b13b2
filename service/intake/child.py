"""An image process: reads documents and tasks from its standard input, answers on the same socket, ends when it closes.

It keeps one document open until the next one arrives. It also holds texts against the print of pages. It has no
secrets and no other request's file, writes no files, and the kernel limits its memory and CPU time.
Started by `service.intake.pool` as `python -m service.intake.child`; never imported by the service itself.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable

from service import frames
from service.errors import DecodeMemoryError, DeepSynthError, InternalError
from service.intake import wire
from service.intake.decoding import OpenDocument
from shared.images.accounting import account

OPEN_FILES = 64


def confine(memory_bytes: int) -> None:
    """Limit memory and open files, and forbid writing files and core dumps; cannot be undone.

    Args:
        memory_bytes: Size of the address space.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def allow_cpu(seconds: float) -> None:
    """Limit the CPU time from now on; the kernel ends the process with SIGXCPU after that.

    Args:
        seconds: CPU time.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def take_pipe() -> socket.socket:
    """The socket that came as standard input; all standard streams are closed, so that no library writes to it.

    Standard error must lead to the service until here: it says why an import failed.
    """
    pipe = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    return pipe


def answer(pipe: socket.socket, work: Callable[[], tuple[bytes, *tuple[memoryview, ...]]]) -> None:
    """Send what the work returns, a header and a tail, or the error."""
    try:
        reply = work()
    except DeepSynthError as error:
        reply = (wire.encode_error_reply(error),)
    except MemoryError:
        reply = (wire.encode_error_reply(DecodeMemoryError()),)
    except Exception:  # noqa: BLE001 -- boundary of this process: one bad file costs one answer, not a restart
        reply = (wire.encode_error_reply(InternalError()),)
    frames.send(pipe, *reply)


def main() -> int:
    """Serve until the pipe closes.

    Returns:
        Exit status.
    """
    memory_bytes, cpu_s, max_file_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    confine(memory_bytes)
    pipe = take_pipe()
    frames.send(pipe, wire.READY)
    document: OpenDocument | None = None

    def open_document() -> tuple[bytes]:
        nonlocal document
        document = OpenDocument(wire.decode_open(header, bytes(tail)))
        return (wire.encode_contents(document.contents),)

    def decode() -> tuple[bytes, *tuple[memoryview, ...]]:
        if document is None:
            raise InternalError("no document is open")
        return wire.encode_page_reply(document.decode(wire.decode_task(header)))

    def preview() -> tuple[bytes, memoryview]:
        if document is None:
            raise InternalError("no document is open")
        return wire.encode_preview_reply(document.preview(wire.decode_preview(header)))

    def copy() -> tuple[bytes, memoryview]:
        if document is None:
            raise InternalError("no document is open")
        return wire.encode_copy_reply(document.copy(wire.decode_copy(header)))

    def hold_against_print() -> tuple[bytes]:
        task = wire.decode_print(bytes(tail))
        return (wire.encode_account(account(task.text, task.lines, task.boxed)),)

    def add_text() -> tuple[bytes, memoryview]:
        if document is None:
            raise InternalError("no document is open")
        text = wire.decode_text(bytes(tail))
        allow_cpu(cpu_s * text.num_shares)
        return wire.PDF, memoryview(document.searchable_pdf(text))

    while True:
        try:
            header, tail = frames.receive(pipe, max_tail_bytes=max(max_file_bytes, wire.MAX_TEXT_BYTES))
        except (frames.BrokenFrameError, OSError):
            return 0
        allow_cpu(cpu_s)
        if wire.is_task(header):
            answer(pipe, decode)
            continue
        if wire.is_print(header):
            answer(pipe, hold_against_print)
            continue
        if wire.is_preview(header):
            answer(pipe, preview)
            continue
        if wire.is_copy(header):
            answer(pipe, copy)
            continue
        if wire.is_text(header):
            answer(pipe, add_text)
            continue
        if document is not None:
            document.close()
            document = None
        if header != wire.CLOSE:
            answer(pipe, open_document)


if __name__ == "__main__":
    sys.exit(main())
