"""`python -m trainer evaluate`: flags in, table, record, card and report out.

Owns the flags and which readers they make. What is read, how it is scored and how it is shown belongs to
`trainer.evaluation`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode
from trainer.config import TrainerSettings, child_environment
from trainer.data.sources.splits import SPLITS
from trainer.evaluation.card import update_card
from trainer.evaluation.results import EvaluationResult, load_result, to_json
from trainer.evaluation.run import ScoredPage, evaluate
from trainer.evaluation.samples import Layout, SampleSet, is_set, load_scans, load_set
from trainer.evaluation.table import text_table
from trainer.evaluation.transcript import write_transcript
from trainer.evaluation.worst import worst_report
from trainer.readers.protocol import Reader
from trainer.readers.service import ServiceReader
from trainer.readers.tesseract import TesseractReader

DEFAULT_MODEL = "shared/nano"
TASKS = (Task.FREE, Task.MARKDOWN, Task.OCR)
"""Tasks whose answer is the page's text."""


class UsageError(ValueError):
    """Flags that make no sense together."""


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("evaluate", help="measure error rates on pages with known texts", description=__doc__)
    pages = parser.add_argument_group("pages")
    pages.add_argument("--data", metavar="SOURCE", help="an evaluation set (DIR/index.jsonl with tiers), or any source")
    pages.add_argument("--tiers", nargs="+", default=[], metavar="TIER", help="tiers of the set to read; all")
    pages.add_argument("--split", choices=SPLITS, help="split of the source to read; all, each a tier")
    pages.add_argument("--layout", type=Layout, choices=list(Layout), help="of the source's pages (block)")
    pages.add_argument("--real", type=Path, metavar="DIR", help="scans: a folder with images/ and truth/")
    pages.add_argument("--limit", type=_positive, metavar="N", help="at most N pages of each tier, or of the source")
    readers = parser.add_argument_group("readers")
    readers.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint: folder or repository (%(default)s)")
    readers.add_argument("--url", help="a running service to measure in the place of a checkpoint")
    readers.add_argument("--model-id", help="model or adapter that the service is asked for")
    readers.add_argument("--tesseract", action="store_true", help="let Tesseract read the same pages")
    readers.add_argument("--task", type=Task, choices=TASKS, default=Task.FREE, help="(%(default)s)")
    readers.add_argument("--mode", type=Mode, choices=list(Mode), help="resolution; the checkpoint's default")
    readers.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="(%(default)s)")
    readers.add_argument("--max-new-tokens", type=_positive, metavar="N", help="by the page's layout")
    readers.add_argument("--device", help="auto, cpu or cuda; DEEPSYNTH_TRAINER_DEVICE")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    output.add_argument(
        "--pages", type=Path, metavar="FILE", help="write every page's readings, one JSON object a line"
    )
    output.add_argument("--worst", type=_positive, metavar="N", help="write an HTML report of the N worst pages")
    output.add_argument("--worst-file", type=Path, metavar="FILE", default=Path("worst.html"), help="(%(default)s)")
    output.add_argument(
        "--update-card", type=Path, metavar="CARD", help="write the table into a card, the record beside it"
    )
    output.add_argument(
        "--from-json", type=Path, metavar="FILE", help="read nothing: show this record, or put it into a card"
    )
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Carry the command out.

    Args:
        options: Its flags.
        settings: The machine's settings.

    Returns:
        The table.

    Raises:
        UsageError: There is nothing to read.
        SampleError: A set cannot be read.
        DataError: There is no such source.
        ReaderError: A reader cannot work.
    """
    if options.from_json is not None:
        return _show(load_result(options.from_json), [], options)
    # Readers take files, and so does the report of the worst pages; sources may have none.
    with TemporaryDirectory(prefix="deepsynth-evaluate-") as scratch:
        sets = _sets(options, Path(scratch))
        readers = _readers(options, settings)
        result, pages = evaluate(sets, readers, sys.stderr)
        return _show(result, pages, options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _sets(options: argparse.Namespace, scratch: Path) -> list[SampleSet]:
    sets = []
    if options.data is not None:
        sets.append(_data_set(options, scratch))
    if options.real is not None:
        sets.append(load_scans(options.real, options.limit))
    if not sets:
        raise UsageError("nothing to read: give --data SOURCE, --real DIR or both")
    return sets


def _data_set(options: argparse.Namespace, scratch: Path) -> SampleSet:
    if is_set(Path(options.data)):
        if options.split or options.layout:
            raise UsageError("an evaluation set has tiers: choose with --tiers, not with --split or --layout")
        return load_set(Path(options.data), options.tiers, options.limit)
    if options.tiers:
        raise UsageError(f"{options.data} is no evaluation set and has no tiers: choose with --split")
    # pyarrow takes a moment to import, which --help need not pay for.
    from trainer.evaluation.sources import load_source

    return load_source(options.data, scratch, options.split, options.layout or Layout.BLOCK, options.limit)


def _readers(options: argparse.Namespace, settings: TrainerSettings) -> list[Reader]:
    readers: list[Reader] = []
    # First, as a missing program should be known before a model has read for minutes.
    if options.tesseract:
        readers.append(TesseractReader(child_environment(), settings.num_threads, program=settings.tesseract))
    main = _service_reader(options) if options.url else _model_reader(options, settings)
    return [main, *readers]


def _service_reader(options: argparse.Namespace) -> Reader:
    fields = {
        "task": options.task.value,
        "mode": options.mode.value if options.mode else None,
        "model_id": options.model_id,
        "max_new_tokens": str(options.max_new_tokens) if options.max_new_tokens else None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return ServiceReader(options.url, given, options.batch_size)


def _model_reader(options: argparse.Namespace, settings: TrainerSettings) -> Reader:
    # torch and the model take seconds to import, which --help and --from-json need not pay for.
    from trainer.readers.loading import load_model_reader
    from trainer.readers.model import ReadingOptions

    reading = ReadingOptions(options.task, options.mode, options.batch_size, options.max_new_tokens)
    return load_model_reader(options.model, options.device or settings.device, settings.num_threads, reading)


def _show(result: EvaluationResult, pages: Sequence[ScoredPage], options: argparse.Namespace) -> str:
    if options.json is not None:
        options.json.write_text(to_json(result), encoding="utf-8")
    if options.update_card is not None:
        update_card(options.update_card, result)
    names = [reader.name for reader in result.readers]
    if pages and options.pages is not None:
        write_transcript(options.pages, pages, names)
    if pages and options.worst is not None:
        options.worst_file.write_text(worst_report(pages, names, options.worst), encoding="utf-8")
    return text_table(result)
