"""`python -m service ocr`: reads files and prints their text, without a server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.trace import NoOpTracer

from service.adapters.models import ServedModels
from service.admission.gate import Gate
from service.cli.serve import EXIT_ENGINE_FAILED
from service.cli.startup import start
from service.config import LogLevel, ServiceSettings
from service.engine.protocol import EngineHandle
from service.errors import DeepSynthError, EngineError, UploadTooLargeError
from service.intake.pool import ImagePool
from service.ocr.answer import to_answer
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.registry import FORMATS
from service.ocr.metrics import TelemetryObserver
from service.ocr.reader import DocumentReader
from service.ocr.request import parse_request
from service.routes.disposition import safe_name
from service.schemas import OcrAnswer
from service.telemetry.metrics import Metrics
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import Mode

EXIT_UNREADABLE = 1
_EPILOG = """\
exit status: 0 every page was read, 1 some page was not, 2 wrong usage or settings, 70 the engine failed,
130 Ctrl-C
"""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Files and flags of the command."""

    files: Sequence[Path]
    as_json: bool
    format: str | None
    """An output format; None prints the text."""
    task: Task
    query: str | None
    mode: Mode | None
    pages: str | None
    max_new_tokens: int | None
    temperature: float | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class _Bench:
    """What reading a file needs."""

    settings: ServiceSettings
    engine: EngineHandle
    gate: Gate
    reader: DocumentReader
    pool: ImagePool
    room: asyncio.Semaphore
    """As many concurrent files as there are page slots."""


@contextlib.asynccontextmanager
async def _reading(settings: ServiceSettings) -> AsyncIterator[_Bench]:
    # Imported here because it is slow, and `--help` does not need it.
    from service.app import PAGES_AHEAD, batch_size, build_engine, build_gate, build_limits, build_pool

    engine = build_engine(settings)
    pool = build_pool(settings)
    gate = build_gate(settings)
    observer = TelemetryObserver(Metrics(), NoOpTracer())
    reader = DocumentReader(source=pool, engine=engine, gate=gate, limits=build_limits(settings), observer=observer)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.start())
            group.create_task(engine.start())
        yield _Bench(settings, engine, gate, reader, pool, asyncio.Semaphore(PAGES_AHEAD * batch_size(settings)))
    except* DeepSynthError as failures:
        raise EngineError(str(failures.exceptions[0])) from failures
    finally:
        await engine.stop()
        await pool.stop()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its flags."""
    parser.description, parser.epilog = "Read files and print their text.", _EPILOG
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="image (PNG, JPEG, WebP, TIFF, GIF, BMP, JPEG 2000, AVIF, HEIC) or PDF",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object per file")
    parser.add_argument("--format", choices=list(FORMATS), help="write this format of one FILE instead of its text")
    parser.add_argument("--task", choices=[str(task) for task in Task], default=str(Task.FREE), help="default: free")
    parser.add_argument("--query", help="what to look for; with --task locate")
    parser.add_argument("--mode", choices=[str(mode) for mode in Mode], help="resolution; default: the model's own")
    parser.add_argument(
        "--pages", help="pages of a PDF or TIFF, such as 1-3,7; default: all, and the first frame of an animation"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum tokens per page")
    parser.add_argument("--temperature", type=float, metavar="T", help="sample tokens, 0 to 2; default: 0, greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable; with --temperature")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Read files and print their text; returns the exit status, see `_EPILOG`."""
    settings = start(LogLevel.WARNING)
    values = {name: value for name, value in vars(arguments).items() if name != "command"}
    values["task"], values["mode"] = Task(arguments.task), arguments.mode and Mode(arguments.mode)
    options = ReadOptions(**values)
    try:
        prompt_for(options.task, options.query)
    except ValueError as error:
        parser.error(str(error))
    if options.format is not None and (options.as_json or len(options.files) > 1):
        parser.error("--format takes one FILE and no --json")
    done: list[Path] = []
    try:
        return asyncio.run(_ocr(settings, options, done))
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"Files printed: {len(done)} of {len(options.files)}.") from interrupt
    except EngineError as error:
        sys.stderr.write(f"deepsynth: {error}\n")
        return EXIT_ENGINE_FAILED


async def _ocr(settings: ServiceSettings, options: ReadOptions, done: list[Path]) -> int:
    """Read all files and print them in order; `done` gets those whose text or error has been printed."""
    async with _reading(settings) as bench, asyncio.TaskGroup() as group:
        tasks = [group.create_task(_read_file(bench, path, options)) for path in options.files]
        status = 0
        for path, task in zip(options.files, tasks, strict=True):
            outcome = await task
            if isinstance(outcome, tuple):
                answer, body = outcome
                if body is None:
                    _print_answer(path, answer, options)
                else:
                    sys.stdout.buffer.write(body)
                    sys.stdout.flush()
                for page in answer.pages:
                    if page.error is not None:
                        status = EXIT_UNREADABLE
                        sys.stderr.write(f"{path}: page {page.page}: {page.error.title} ({page.error.code})\n")
            else:
                status = EXIT_UNREADABLE
                sys.stderr.write(f"{path}: {outcome}\n")
            done.append(path)
    return status


async def _read_file(bench: _Bench, path: Path, options: ReadOptions) -> tuple[OcrAnswer, bytes | None] | str:
    """The answer and its bytes in the format that is asked for, or why there is none."""
    async with bench.room:
        start_s = time.monotonic()
        try:
            data = await asyncio.to_thread(_load, path, bench.settings.max_upload_bytes)
            request = parse_request(
                data=data,
                info=bench.engine.info,
                models=ServedModels(bench.engine),
                limits=bench.reader.limits,
                max_new_tokens_cap=bench.settings.max_new_tokens,
                task=options.task,
                query=options.query,
                mode=options.mode,
                max_new_tokens=options.max_new_tokens,
                pages=options.pages,
                temperature=options.temperature,
                seed=options.seed,
                blank_pages=bench.settings.blank_pages,
                min_confidence=bench.settings.min_confidence,
            )
            with bench.gate.admit() as permit:
                document = await bench.reader.read(data, request, permit)
            answer = to_answer(document, receive_s=0.0, latency_s=time.monotonic() - start_s)
            if options.format is None:
                return answer, None
            read = ReadDocument(answer, options.task, data, safe_name(path.name), bench.reader.limits)
            return answer, bytes(await FORMATS[options.format].render(read, bench.pool))
        except OSError as error:
            return error.strerror or "cannot be opened"
        except DeepSynthError as error:
            facts = "".join(f", {name}: {value}" for name, value in error.public.items())
            return f"{error.title} ({error.code}{facts})"


def _load(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise UploadTooLargeError(public={"limit_bytes": limit_bytes})
    return data


def _print_answer(path: Path, answer: OcrAnswer, options: ReadOptions) -> None:
    if options.as_json:
        sys.stdout.write(json.dumps({"file": str(path), **answer.model_dump(mode="json")}, ensure_ascii=False) + "\n")
    else:
        heading = f"== {path} ==\n" if len(options.files) > 1 else ""
        sys.stdout.write(f"{heading}{answer.text}\n")
    sys.stdout.flush()
