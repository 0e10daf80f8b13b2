"""`python -m trainer report`: write an HTML report of the folder of a training run or a sweep.

Owns the flags and finds the files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from trainer.commands.flags import UsageError
from trainer.config import TrainerSettings
from trainer.evaluation.card import RECORD_NAME
from trainer.evaluation.results import load_result
from trainer.publishing.gate import RUN_FILE
from trainer.report.curves import read_curves
from trainer.report.page import report_page
from trainer.report.sweep import SWEEP_FILE, sweep_page
from trainer.report.worst import WORST_NAME, load_worst
from trainer.training.events import LOG_FILE

REPORT_NAME = "report.html"


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report", help="write an HTML report of a training run or a sweep", description=__doc__
    )
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help="a training run, a sweep, or what `evaluate --out` wrote"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"(RUN/{REPORT_NAME})")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the command; returns the report's path."""
    output = options.output or options.run_folder / REPORT_NAME
    output.write_text(report_of(options.run_folder), encoding="utf-8")
    return f"wrote {output}"


def report_of(folder: Path) -> str:
    """The HTML report of a sweep's or a training run's folder, or of one that an evaluation wrote to.

    Raises `UsageError` if it has nothing to report on, or `ResultError` if a record cannot be read.
    """
    record, log, run = (folder / name for name in (RECORD_NAME, LOG_FILE, RUN_FILE))
    if (folder / SWEEP_FILE).is_file():
        return sweep_page(_record(folder / SWEEP_FILE), folder.resolve().name)
    if not (record.is_file() or log.is_file()):
        raise UsageError(
            f"{folder} holds none of {RECORD_NAME}, {LOG_FILE}, {SWEEP_FILE}: give the folder of a run or a sweep"
        )
    return report_page(
        load_result(record) if record.is_file() else None,
        load_worst(folder / WORST_NAME),
        read_curves(log) if log.is_file() else None,
        _record(run) if run.is_file() else None,
        name=folder.resolve().name,
    )


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON; it was truncated or edited") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path} is no record; it was edited")
    return record
