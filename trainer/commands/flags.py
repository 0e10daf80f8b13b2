"""Flags that several commands share: pages to measure on, and how a model reads them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.reading_layout import ReadingLayout
from trainer.data.sources.splits import SPLITS
from trainer.evaluation.samples import Layout, SampleSet, is_set, load_scans, load_set

if TYPE_CHECKING:
    from trainer.reading.model import ReadingOptions

DEFAULT_MODEL = "shared/nano"
TASKS = (Task.FREE, Task.MARKDOWN, Task.OCR)
"""Tasks whose answer is the page's text."""


class UsageError(ValueError):
    """Flags that contradict each other or are incomplete."""


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def ratio(text: str) -> float:
    """Parse a share from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def require_writable(*files: Path | None, folder: Path | None = None) -> None:
    """Check where results go before the work that they come from, which takes minutes or hours.

    Args:
        *files: to be written or replaced; their folders have to exist. None is passed over.
        folder: to be made, with its parents, if it does not exist.

    Raises:
        UsageError: one of them cannot be written.
    """
    for file in (each for each in files if each is not None):
        if not file.parent.is_dir():
            raise UsageError(f"there is no folder {file.parent} to write {file.name} to; make it, or name another")
        if file.is_dir():
            raise UsageError(f"{file} is a folder; name a file")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise UsageError(f"{file} cannot be written; name another file")
    if folder is not None:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UsageError(f"{folder} cannot be written; name another folder")


def add_page_flags(parser: argparse.ArgumentParser, title: str = "pages") -> None:
    """Add the flags that select pages."""
    pages = parser.add_argument_group(title)
    pages.add_argument("--data", metavar="SOURCE", help="an evaluation set (DIR/index.jsonl with tiers), or any source")
    pages.add_argument("--tiers", nargs="+", default=[], metavar="TIER", help="tiers of the set to read; default: all")
    pages.add_argument("--split", choices=SPLITS, help="split of the source to read; default: all, each a tier")
    pages.add_argument("--layout", type=Layout, choices=list(Layout), help="layout of the source's pages (block)")
    pages.add_argument("--real", type=Path, metavar="DIR", help="scans: a folder with images/ and truth/")
    pages.add_argument("--limit", type=positive, metavar="N", help="at most N pages of each tier, or of the source")


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how pages are read."""
    reading = parser.add_argument_group("reading")
    reading.add_argument("--task", type=Task, choices=TASKS, default=Task.FREE, help="(%(default)s)")
    reading.add_argument("--mode", type=Mode, choices=list(Mode), help="resolution; default: the checkpoint's")
    reading.add_argument(
        "--reading-layout",
        type=ReadingLayout,
        choices=list(ReadingLayout),
        default=ReadingLayout.AUTO,
        help="whole pages or lines; auto reads as the service does (%(default)s)",
    )
    reading.add_argument("--batch-size", type=positive, default=8, metavar="N", help="(%(default)s)")
    reading.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest answer; default: by the page's layout"
    )
    reading.add_argument("--device", help="auto, cpu or cuda; DEEPSYNTH_TRAINER_DEVICE")


def reading_options(options: argparse.Namespace) -> ReadingOptions:
    """How a model in this process reads."""
    # Imported late: torch takes seconds, which --help does not need.
    from trainer.reading.model import ReadingOptions

    return ReadingOptions(
        options.task, options.mode, options.batch_size, options.max_new_tokens, options.reading_layout
    )


def page_sets(options: argparse.Namespace, scratch: Path) -> list[SampleSet]:
    """The pages that the flags of `add_page_flags` name; none where no flag names any.

    `scratch` receives images of sources that have no files, and must exist as long as the sets are used. Raises
    `UsageError`, `SampleError` or `DataError`.
    """
    sets = []
    if options.data is not None:
        sets.append(_data_set(options, scratch))
    if options.real is not None:
        sets.append(load_scans(options.real, options.limit))
    return sets


def _data_set(options: argparse.Namespace, scratch: Path) -> SampleSet:
    if is_set(Path(options.data)):
        if options.split or options.layout:
            raise UsageError("an evaluation set has tiers: choose with --tiers, not with --split or --layout")
        return load_set(Path(options.data), options.tiers, options.limit)
    if options.tiers:
        raise UsageError(f"{options.data} is not an evaluation set and has no tiers: choose with --split")
    # Imported late: pyarrow takes a moment, which --help does not need.
    from trainer.evaluation.sources import load_source

    return load_source(options.data, scratch, options.split, options.layout or Layout.BLOCK, options.limit)
