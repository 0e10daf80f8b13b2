"""`python -m trainer calibrate`: make a checkpoint's confidences probabilities, and measure how far off they are.

Reads pages whose text is known, fits monotone maps from the scores of words and digits to the share that is right, and
writes them next to the checkpoint's weights. Owns the flags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shared.contract.calibration import Calibration, write_calibration
from trainer.calibration.cases import PageCases, cases_of
from trainer.calibration.fit import fit_calibration
from trainer.calibration.reliability import confidences, reliability, review
from trainer.calibration.report import Measured, picture, report
from trainer.commands.flags import (
    DEFAULT_MODEL,
    UsageError,
    add_page_flags,
    add_reading_flags,
    page_sets,
    require_writable,
)
from trainer.commands.flags import reading_options as options_of_reading
from trainer.config import TrainerSettings
from trainer.evaluation.provenance import current_date, machine, package_versions, source_commit
from trainer.evaluation.run import read_all
from trainer.evaluation.samples import Layout, SampleSet, is_set, load_scans, load_set
from trainer.reading.protocol import Reader

THRESHOLDS = (0.5, 0.8, 0.9, 0.95)
"""Review thresholds that a report gives figures for."""


def add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "calibrate", help="make a checkpoint's confidences probabilities of being right", description=__doc__
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint: a folder (%(default)s)")
    add_page_flags(parser, "pages to fit to; the model must not have learnt from them")
    checks = parser.add_argument_group("pages to measure on; nothing is fitted to them")
    checks.add_argument("--check", nargs="+", default=[], metavar="SOURCE", help="as --data, or a folder of scans")
    checks.add_argument(
        "--check-any-order",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="the same for truths that are not in reading order: a word is right where the truth has it anywhere",
    )
    add_reading_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--report", type=Path, metavar="FILE", help="write figures as Markdown, and a picture next to it"
    )
    parser.set_defaults(run=run_calibrate)


def run_calibrate(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns a line for each set.

    Raises errors of usage, sets, sources and readers, and `TooFewCasesError`.
    """
    # Imported late: torch takes seconds, which --help does not need.
    from trainer.reading.loading import load_model_reader

    folder = Path(options.model)
    if not folder.is_dir():
        raise UsageError(f"--model {options.model}: the calibration is written next to the weights, so give a folder")
    if options.report is not None:
        require_writable(folder=options.report.parent)
    with TemporaryDirectory(prefix="deepsynth-calibrate-") as scratch:
        fitted = page_sets(options, Path(scratch))
        if not fitted:
            raise UsageError("nothing to fit to: give --data SOURCE, --real DIR or both")
        checks = [(_load(name, Path(scratch), options.limit), False) for name in options.check]
        checks += [(_load(name, Path(scratch), options.limit), True) for name in options.check_any_order]
        device = options.device or settings.device
        reader = load_model_reader(options.model, device, settings.num_threads, options_of_reading(options))
        read = [(each, _cases(reader, each, any_order=False)) for each in fitted]
        pages = [page for _, cases in read for page in cases]
        maps = fit_calibration(pages)
        measured = [_measure(each.name, cases, maps, is_fitted=True) for each, cases in read]
        for each, any_order in checks:
            measured.append(_measure(each.name, _cases(reader, each, any_order=any_order), maps))
        sets = [*fitted, *(each for each, _ in checks)]
        path = write_calibration(folder, maps, _facts(reader, sets, measured))
        if options.report is not None:
            _write_report(options.report, reader, sets, measured)
    lines = [
        f"{each.name}: ECE of words {each.words.error:.4f}, of digits {each.digits.error:.4f}" for each in measured
    ]
    return "\n".join([f"wrote {path}", *lines])


def _load(name: str, scratch: Path, limit: int | None) -> SampleSet:
    folder = Path(name)
    if is_set(folder):
        return load_set(folder, (), limit)
    if (folder / "images").is_dir() and (folder / "truth").is_dir():
        return load_scans(folder, limit)
    # Imported late: pyarrow takes a moment, which --help does not need.
    from trainer.evaluation.sources import load_source

    images = scratch / str(len(list(scratch.iterdir())))
    images.mkdir()
    return load_source(name, images, None, Layout.BLOCK, limit)


def _cases(reader: Reader, pages: SampleSet, *, any_order: bool) -> list[PageCases]:
    readings = read_all(reader, pages.samples, sys.stderr)
    return [
        cases_of(sample, reading, any_order=any_order) for sample, reading in zip(pages.samples, readings, strict=True)
    ]


def _measure(name: str, pages: Sequence[PageCases], maps: Calibration, *, is_fitted: bool = False) -> Measured:
    by_page = [confidences(page.words, maps.words.share) for page in pages]
    words = [judged for page in by_page for judged in page]
    digits = [judged for page in pages for judged in confidences(page.digits, maps.digit_share)]
    distances = [
        abs(sum(confidence for confidence, _ in page) - sum(is_right for _, is_right in page)) / len(page)
        for page in by_page
        if page
    ]
    return Measured(
        name=name,
        pages=len(pages),
        is_fitted=is_fitted,
        words=reliability(words),
        digits=reliability(digits),
        digits_elsewhere=sum(digit.is_elsewhere for page in pages for digit in page.digits),
        page_error=sum(distances) / max(len(distances), 1),
        reviews=tuple(review(words, threshold) for threshold in THRESHOLDS),
    )


def _facts(reader: Reader, sets: Sequence[SampleSet], measured: Sequence[Measured]) -> dict[str, Any]:
    return {
        "weights": reader.details["weights"],
        "date": current_date(),
        "commit": source_commit(),
        "versions": package_versions(),
        "sets": [
            {
                "name": pages.name,
                "sha256": pages.sha256,
                "pages": each.pages,
                "fitted": each.is_fitted,
                "words": each.words.cases,
                "ece_words": round(each.words.error, 4),
                "digits": each.digits.cases,
                "digits_elsewhere": each.digits_elsewhere,
                "ece_digits": round(each.digits.error, 4),
            }
            for pages, each in zip(sets, measured, strict=True)
        ],
    }


def _write_report(path: Path, reader: Reader, sets: Sequence[SampleSet], measured: Sequence[Measured]) -> None:
    image = path.with_suffix(".svg")
    facts = {
        "model": f"{reader.name}, weights {reader.details['weights'][:12]}",
        "how it read": ", ".join(f"{name} {value}" for name, value in reader.details.items() if name != "weights"),
        "sets (SHA-256)": ", ".join(f"{pages.name} {pages.sha256[:12]}" for pages in sets),
        "machine": ", ".join(machine().values()),
        "versions": ", ".join(f"{name} {value}" for name, value in package_versions().items()),
        "commit": source_commit(),
        "date": current_date(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    image.write_text(picture(measured), encoding="utf-8")
    path.write_text(report(measured, facts, image.name), encoding="utf-8")
