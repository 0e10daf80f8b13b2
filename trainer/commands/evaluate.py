"""`python -m trainer evaluate`: measure error rates, and write table, record, card and report.

Owns the flags and makes the readers. Reading, scoring and showing are in `trainer.evaluation` and `trainer.report`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from shared.deepseek_ocr.reading_layout import ReadingLayout
from trainer.commands.flags import (
    DEFAULT_MODEL,
    UsageError,
    add_page_flags,
    add_reading_flags,
    page_sets,
    positive,
    reading_options,
    require_writable,
)
from trainer.commands.report import REPORT_NAME, report_of
from trainer.config import TrainerSettings, child_environment
from trainer.evaluation.card import RECORD_NAME, update_card
from trainer.evaluation.page_test_file import load_page_tests
from trainer.evaluation.paths import locate_adapter, run_folder
from trainer.evaluation.results import LAYOUT_KEY, EvaluationResult, load_result, to_json
from trainer.evaluation.run import ScoredPage, evaluate
from trainer.evaluation.samples import Layout, SampleSet
from trainer.evaluation.seen import SeenPages
from trainer.evaluation.table import text_table
from trainer.evaluation.transcript import write_transcript
from trainer.publishing.gate import model_of_run
from trainer.reading.protocol import Reader
from trainer.reading.rapidocr import RapidReader
from trainer.reading.service import ServiceReader
from trainer.reading.tesseract import TesseractReader
from trainer.report.page import report_page
from trainer.report.worst import WORST_NAME, WorstPage, save_worst, with_images, worst_pages

if TYPE_CHECKING:
    from trainer.evaluation.tested_pages import TestedPages

CONCURRENCY = 16
WORST_PAGES = 8


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("evaluate", help="measure error rates on pages with known texts", description=__doc__)
    add_page_flags(parser)
    tests = parser.add_argument_group("page tests")
    tests.add_argument(
        "--page-tests", type=Path, nargs="+", default=[], metavar="FILE", help="tests by page, as olmOCR-Bench has them"
    )
    tests.add_argument(
        "--test-pages",
        type=Path,
        metavar="DIR",
        help="their pages, PDFs or images; default: the set's pages, the file's folder or pdfs/ in it",
    )
    tests.add_argument(
        "--add-baseline", action="store_true", help="add a test of the kind baseline to pages that have none"
    )
    readers = parser.add_argument_group("readers")
    readers.add_argument(
        "--model", help=f"checkpoint: folder or repository; default: that of the adapter's run, else {DEFAULT_MODEL}"
    )
    readers.add_argument(
        "--adapter", metavar="DIR|NAME[@VERSION]", help="PEFT folder or published adapter, compared with the base model"
    )
    readers.add_argument("--volume", type=Path, metavar="DIR", help="the adapter volume in which a name is looked up")
    readers.add_argument("--no-base", action="store_true", help="read with the adapter only")
    readers.add_argument("--url", help="a running service to measure instead of a checkpoint")
    readers.add_argument("--model-id", help="model or adapter to request from the service")
    readers.add_argument(
        "--concurrency", type=positive, default=CONCURRENCY, metavar="N", help="requests at once (%(default)s)"
    )
    readers.add_argument("--tesseract", action="store_true", help="read the same pages with Tesseract too")
    readers.add_argument("--rapidocr", action="store_true", help="and with RapidOCR (extra `trainer-rapidocr`)")
    add_reading_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--no-teds", action="store_true", help="leave out TEDS where truths have tables")
    output.add_argument("--bert-score", metavar="MODEL", help="add BERTScore by this model: folder or repository")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    output.add_argument(
        "--pages", type=Path, metavar="FILE", help="write every page's readings, one JSON object a line"
    )
    output.add_argument("--html", type=Path, metavar="FILE", help="write a report with figures and the worst pages")
    output.add_argument(
        "--worst", type=positive, default=WORST_PAGES, metavar="N", help="pages that a report shows (%(default)s)"
    )
    output.add_argument(
        "--out", type=Path, metavar="DIR", help="write record, worst pages and report into a run's folder"
    )
    output.add_argument(
        "--update-card", type=Path, metavar="CARD", help="write the table into a card, and the record next to it"
    )
    output.add_argument(
        "--from-json", type=Path, metavar="FILE", help="read no pages: show this record, or write it into a card"
    )
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns the table.

    Raises errors of usage, sets, sources, readers and the adapter volume before any model reads.
    """
    require_writable(options.json, options.pages, options.html, options.update_card, folder=options.out)
    if options.from_json is not None:
        return _show(load_result(options.from_json), [], options)
    if options.no_base and options.adapter is None:
        raise UsageError("--no-base leaves nothing to read with; give --adapter")
    # Readers take files, and so does the report of the worst pages; sources may have none.
    with TemporaryDirectory(prefix="deepsynth-evaluate-") as scratch:
        sets = page_sets(options, Path(scratch))
        tested = _tested_pages(options, sets, Path(scratch))
        if not sets and tested is None:
            raise UsageError("nothing to read: give --data SOURCE, --real DIR, --page-tests FILE or several of them")
        # Fail on missing models and packages before a model has read for minutes.
        add_teds = _teds(options, sets)
        add_bert_scores = _bert_scores(options, settings)
        readers = _readers(options, settings)
        result, pages = evaluate(sets, readers, sys.stderr, _seen(options), tested)
        return _show(add_teds(add_bert_scores(result, pages), pages), pages, options)


def _tested_pages(options: argparse.Namespace, sets: Sequence[SampleSet], scratch: Path) -> TestedPages | None:
    if not options.page_tests:
        if options.test_pages is not None or options.add_baseline:
            raise UsageError("--test-pages and --add-baseline go with --page-tests FILE")
        return None
    if options.test_pages is not None and not options.test_pages.is_dir():
        raise UsageError(f"there is no folder {options.test_pages}; name that of the tests' pages with --test-pages")
    # Imported late: pdfium takes a moment, which --help does not need.
    from trainer.evaluation.tested_pages import PDF_FOLDER, find_pages

    tests = load_page_tests(options.page_tests).first_pages(options.limit)
    parents = dict.fromkeys(file.parent for file in options.page_tests)
    folders = [options.test_pages] if options.test_pages else [*parents, *(folder / PDF_FOLDER for folder in parents)]
    samples = [sample for pages in sets for sample in pages.samples]
    tests = tests.with_baseline() if options.add_baseline else tests
    return find_pages(tests, samples, folders, scratch, options.layout or Layout.PAGE)


def _seen(options: argparse.Namespace) -> SeenPages | None:
    """Pages that the adapter was trained on, if it is a run's."""
    if options.adapter is None or options.url:
        return None
    return SeenPages.of_run(run_folder(locate_adapter(options.adapter, options.volume).folder))


def _readers(options: argparse.Namespace, settings: TrainerSettings) -> list[Reader]:
    readers: list[Reader] = []
    # First, to fail on a missing program or package before a model has read for minutes.
    if options.tesseract:
        readers.append(TesseractReader(child_environment(), settings.num_threads, program=settings.tesseract))
    if options.rapidocr:
        readers.append(RapidReader(settings.num_threads))
    return [*(_service_readers(options, settings) if options.url else _model_readers(options, settings)), *readers]


def _service_readers(options: argparse.Namespace, settings: TrainerSettings) -> list[Reader]:
    """The adapter first, then the base model; or the one model asked for."""
    model_ids = [options.model_id]
    if options.adapter is not None:
        model_ids = [options.adapter] if options.no_base else [options.adapter, options.model_id]
    fields = {
        "task": options.task.value,
        "mode": options.mode.value if options.mode else None,
        LAYOUT_KEY: None if options.reading_layout is ReadingLayout.AUTO else options.reading_layout.value,
        "max_new_tokens": str(options.max_new_tokens) if options.max_new_tokens else None,
    }
    readers: list[Reader] = []
    for model_id in model_ids:
        given = {name: value for name, value in {**fields, "model_id": model_id}.items() if value is not None}
        is_adapter = options.adapter is not None and model_id == options.adapter
        readers.append(
            ServiceReader(options.url, given, options.concurrency, key=settings.api_key, is_adapter=is_adapter)
        )
    return readers


def _model_readers(options: argparse.Namespace, settings: TrainerSettings) -> list[Reader]:
    # Imported late: torch takes seconds, which --help and --from-json do not need.
    from trainer.reading.loading import load_adapter_readers, load_model_reader

    place = locate_adapter(options.adapter, options.volume) if options.adapter is not None else None
    device, reading = options.device or settings.device, reading_options(options)
    if place is None:
        return [load_model_reader(options.model or DEFAULT_MODEL, device, settings.num_threads, reading)]
    model = options.model or model_of_run(run_folder(place.folder)) or DEFAULT_MODEL
    adapted, base = load_adapter_readers(model, place, device, settings.num_threads, reading)
    return [adapted] if options.no_base else [adapted, base]


def _teds(
    options: argparse.Namespace, sets: Sequence[SampleSet]
) -> Callable[[EvaluationResult, Sequence[ScoredPage]], EvaluationResult]:
    # Imported late, as only truths with tables need lxml.
    from trainer.evaluation.teds import TedsScorer, has_tables, with_teds

    if options.no_teds or not has_tables(sets):
        return lambda result, _: result
    scorer = TedsScorer()
    return lambda result, pages: with_teds(result, pages, scorer)


def _bert_scores(
    options: argparse.Namespace, settings: TrainerSettings
) -> Callable[[EvaluationResult, Sequence[ScoredPage]], EvaluationResult]:
    if options.bert_score is None:
        return lambda result, _: result
    from trainer.evaluation.bert import BertScorer, with_bert_scores
    from trainer.reading.loading import choose_device

    scorer = BertScorer(options.bert_score, choose_device(options.device or settings.device))
    return lambda result, pages: with_bert_scores(result, pages, scorer)


def _show(result: EvaluationResult, pages: Sequence[ScoredPage], options: argparse.Namespace) -> str:
    if options.json is not None:
        options.json.write_text(to_json(result), encoding="utf-8")
    if options.update_card is not None:
        update_card(options.update_card, result)
    names = [reader.name for reader in result.readers]
    if pages and options.pages is not None:
        write_transcript(options.pages, pages, names)
    if options.html is not None or options.out is not None:
        _report(result, with_images(worst_pages(pages, options.worst), names), options)
    return text_table(result)


def _report(result: EvaluationResult, worst: Sequence[WorstPage], options: argparse.Namespace) -> None:
    if options.html is not None:
        options.html.write_text(report_page(result, worst), encoding="utf-8")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / RECORD_NAME).write_text(to_json(result), encoding="utf-8")
        save_worst(options.out / WORST_NAME, worst)
        (options.out / REPORT_NAME).write_text(report_of(options.out), encoding="utf-8")
