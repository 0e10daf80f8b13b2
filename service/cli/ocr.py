"""The command line's verbs: `serve` runs the API, `ocr` reads files without it, `describe` writes the reference."""

from __future__ import annotations

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
from service.app import PAGES_AHEAD, batch_size, build_engine, build_gate, build_limits, build_pool, create_app
from service.cli.serve import EXIT_ENGINE_FAILED, Server, make_server, run_server
from service.config import ServiceSettings
from service.engine.protocol import EngineHandle
from service.errors import DeepSynthError, EngineError, UploadTooLargeError
from service.ocr.answer import to_answer
from service.ocr.metrics import TelemetryObserver
from service.ocr.reader import DocumentReader
from service.ocr.request import make_order
from service.schemas import OcrAnswer
from service.telemetry.metrics import Metrics
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import Mode

EXIT_UNREADABLE = 1
SAMPLE = "docs/samples/sample-block.png"


def serve(settings: ServiceSettings) -> int:
    """Run the API until it is stopped.

    Args:
        settings: The settings.

    Returns:
        Exit status.
    """
    servers: list[Server] = []
    app = create_app(
        settings,
        on_ready=lambda: servers[0].ready(),  # noqa: PLW0108 -- made after the app
        on_failed=lambda: servers[0].fail(),  # noqa: PLW0108 -- made after the app
    )
    servers.append(
        make_server(
            app,
            host=settings.host,
            port=settings.port,
            deadline_s=settings.deadline_s,
            drain_grace_s=settings.drain_grace_s,
            on_drain=lambda: app.state.gate.drain(),  # noqa: PLW0108 -- made with the lifespan
            on_open=_greet,
        )
    )
    return run_server(servers[0])


def _greet(host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    address = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    sys.stderr.write(
        f"\n  DeepSynth OCR is ready.\n\n"
        f"    Playground   {address}/\n"
        f"    Try it       curl -F file=@{SAMPLE} {address}/ocr\n"
        f"    Stop         Ctrl-C\n\n"
    )
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What `ocr` was asked for."""

    files: Sequence[Path]
    as_json: bool
    task: Task
    query: str | None
    mode: Mode | None
    pages: str | None
    max_new_tokens: int | None
    temperature: float | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything that reading a file needs."""

    settings: ServiceSettings
    engine: EngineHandle
    gate: Gate
    reader: DocumentReader


@contextlib.asynccontextmanager
async def _reading(settings: ServiceSettings) -> AsyncIterator[_Bench]:
    engine = build_engine(settings)
    pool = build_pool(settings)
    gate = build_gate(settings)
    observer = TelemetryObserver(Metrics(), NoOpTracer())
    reader = DocumentReader(source=pool, engine=engine, gate=gate, limits=build_limits(settings), observer=observer)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.start())
            group.create_task(engine.start())
        yield _Bench(settings, engine, gate, reader)
    except* DeepSynthError as failures:
        raise EngineError(str(failures.exceptions[0])) from failures
    finally:
        await engine.stop()
        await pool.stop()


def ocr(settings: ServiceSettings, options: ReadOptions) -> int:
    """Read files and print what they say.

    Args:
        settings: The settings.
        options: Files and wishes.

    Returns:
        Exit status: 0, 1 when a file could not be read, 70 when the engine could not start.
    """
    prompt_for(options.task, options.query)
    try:
        return asyncio.run(_ocr(settings, options))
    except EngineError as error:
        sys.stderr.write(f"deepsynth: {error}\n")
        return EXIT_ENGINE_FAILED


async def _ocr(settings: ServiceSettings, options: ReadOptions) -> int:
    async with _reading(settings) as bench:
        # As many files at once as there are page slots; printed in the order given.
        room = asyncio.Semaphore(PAGES_AHEAD * batch_size(settings))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_read_file(bench, room, path, options)) for path in options.files]
            status = 0
            for path, task in zip(options.files, tasks, strict=True):
                outcome = await task
                if isinstance(outcome, OcrAnswer):
                    _print_answer(path, outcome, options)
                else:
                    status = EXIT_UNREADABLE
                    sys.stderr.write(f"{path}: {outcome}\n")
    return status


async def _read_file(bench: _Bench, room: asyncio.Semaphore, path: Path, options: ReadOptions) -> OcrAnswer | str:
    async with room:
        start_s = time.monotonic()
        try:
            data = await asyncio.to_thread(_load, path, bench.settings.max_upload_bytes)
            order = make_order(
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
            )
            with bench.gate.admit() as permit:
                reading = await bench.reader.read(data, order, permit)
        except OSError as error:
            return error.strerror or "cannot be opened"
        except DeepSynthError as error:
            facts = "".join(f", {name}: {value}" for name, value in error.public.items())
            return f"{error.title} ({error.code}{facts})"
        return to_answer(reading, receive_s=0.0, latency_s=time.monotonic() - start_s)


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
