"""Reads files with an engine in this process."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator

from opentelemetry.trace import NoOpTracer

from service.adapters.models import ServedModels
from service.admission.gate import Gate
from service.cli.inputs import InputFile
from service.cli.reading import Reading, ReadOptions, error_of, load
from service.config import ServiceSettings
from service.engine.protocol import EngineHandle
from service.errors import DeepSynthError, EngineError
from service.intake.pool import ImagePool
from service.ocr.answer import to_answer
from service.ocr.arrangement import Arrangement, arrange, check_arrangement, parse_omit
from service.ocr.confidence import Granularity
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.output_format import OutputFormat
from service.ocr.metrics import TelemetryObserver
from service.ocr.page_notes import notes_of
from service.ocr.reader import DocumentReader
from service.ocr.request import OcrRequest, parse_request
from service.routes.disposition import safe_name
from service.telemetry.metrics import Metrics
from shared.deepseek_ocr.reading_layout import ReadingLayout


class LocalReader:
    """Reads files as the service does, without HTTP."""

    def __init__(
        self,
        settings: ServiceSettings,
        engine: EngineHandle,
        gate: Gate,
        pool: ImagePool,
        reader: DocumentReader,
        jobs: int,
        options: ReadOptions,
        output: OutputFormat | None,
        standard_input: bytes,
    ) -> None:
        self.jobs = jobs
        self._settings = settings
        self._engine = engine
        self._gate = gate
        self._pool = pool
        self._reader = reader
        self._options = options
        self._output = output
        self._standard_input = standard_input

    async def read(self, file: InputFile) -> Reading:
        """Read a file and write it in the output format, see `FileReader`."""
        start_s = time.monotonic()
        try:
            data = await asyncio.to_thread(load, file, self._standard_input, self._settings.max_upload_bytes)
            request = self._request(data)
            wanted = self._arrangement(request)
            with self._gate.admit() as permit:
                document = await self._reader.read(data, request, permit)
            arranged = await arrange(document, wanted, data, self._reader)
            latency_s = time.monotonic() - start_s
            answer = to_answer(
                document, f"ocr-{uuid.uuid4().hex}", receive_s=0.0, latency_s=latency_s, arranged=arranged
            )
            body = None
            if self._output is not None:
                read = ReadDocument(answer, request.task, data, safe_name(file.place.name), self._reader.limits)
                body = bytes(await self._output.render(read, self._pool))
        except DeepSynthError as error:
            if self._engine.life.is_down:
                # Every other file would fail as well.
                raise EngineError("the engine cannot be restarted") from error
            raise error_of(error) from error
        return Reading(answer, body, is_partial=answer.status == "partial", notes=tuple(notes_of(answer.pages)))

    def _arrangement(self, request: OcrRequest) -> Arrangement:
        options = self._options
        wanted = Arrangement(options.table_format, parse_omit(options.omit), options.figures, options.join_pages)
        check_arrangement(wanted, request, self._engine.info.tasks, self._output)
        return wanted

    def _request(self, data: bytes) -> OcrRequest:
        options = self._options
        return parse_request(
            data=data,
            info=self._engine.info,
            models=ServedModels(self._engine),
            limits=self._reader.limits,
            max_new_tokens_cap=self._settings.max_new_tokens,
            task=options.task,
            query=options.query,
            mode=options.mode,
            model_id=options.model_id,
            max_new_tokens=options.max_new_tokens,
            pages=options.pages,
            temperature=options.temperature,
            seed=options.seed,
            blank_pages=options.blank_pages or self._settings.blank_pages,
            min_confidence=self._settings.min_confidence if options.min_confidence is None else options.min_confidence,
            confidence=options.confidence or self._finest(),
            review_threshold=self._review_threshold(),
            min_coverage=self._settings.min_coverage if options.min_coverage is None else options.min_coverage,
            orientation=options.orientation or self._settings.orientation,
            pages_together=options.pages_together,
            layout=options.layout or ReadingLayout.AUTO,
        )

    def _finest(self) -> Granularity:
        """What the output shows, where nothing is asked for."""
        return Granularity.WORD if self._output is not None and self._output.has_word_confidences else Granularity.PAGE

    def _review_threshold(self) -> float | None:
        given = self._options.review_threshold
        return self._settings.review_threshold if given is None else given


@contextlib.asynccontextmanager
async def local_reader(
    settings: ServiceSettings,
    options: ReadOptions,
    output: OutputFormat | None,
    jobs: int | None,
    standard_input: bytes,
) -> AsyncIterator[LocalReader]:
    """Start an engine and image processes, and stop them after the block.

    Args:
        settings: Which engine, and every limit.
        options: How to read.
        output: None for the answer alone.
        jobs: Files at once; None for as many as there are page slots.
        standard_input: Its content, for the input `-`.

    Yields:
        The reader.

    Raises:
        EngineError: The engine does not start.
    """
    # Imported here because it is slow, and `--help` does not need it.
    from service.reader_parts import PAGES_AHEAD, batch_size, build_engine, build_gate, build_limits, build_pool

    engine = build_engine(settings)
    pool = build_pool(settings)
    gate = build_gate(settings)
    observer = TelemetryObserver(Metrics(), NoOpTracer())
    reader = DocumentReader(source=pool, engine=engine, gate=gate, limits=build_limits(settings), observer=observer)
    # The gate refuses more at once.
    jobs = min(jobs or PAGES_AHEAD * batch_size(settings), settings.max_concurrent_requests)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.start())
            group.create_task(engine.start())
        yield LocalReader(settings, engine, gate, pool, reader, jobs, options, output, standard_input)
    except* DeepSynthError as failures:
        raise EngineError(str(failures.exceptions[0])) from failures
    finally:
        await engine.stop()
        await pool.stop()
