"""The command line of `python -m trainer`: parses it, runs one command and prints what the command returns.

A new command is a file in `trainer/commands` and a line in `build_parser`. Errors that a user can fix are printed as
one line on stderr with exit status 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import Any, Final

from safetensors import SafetensorError

from shared.contract.refusals import ContractError
from trainer.calibration.fit import TooFewCasesError
from trainer.commands.benchmark import add_benchmark
from trainer.commands.calibrate import add_calibrate
from trainer.commands.evaluate import add_evaluate
from trainer.commands.export import add_export
from trainer.commands.flags import UsageError
from trainer.commands.merge import add_merge
from trainer.commands.nano import add_nano
from trainer.commands.orientation import add_orientation
from trainer.commands.parser import CommandParser
from trainer.commands.prepare import add_prepare
from trainer.commands.publish import add_publish
from trainer.commands.push import add_push
from trainer.commands.reinforce import add_reinforce
from trainer.commands.report import add_report
from trainer.commands.smoke import add_smoke
from trainer.commands.sweep import add_sweep
from trainer.commands.train import add_train
from trainer.commands.volume import add_volume_commands
from trainer.config import SettingsError, load_settings
from trainer.data.errors import DataError
from trainer.evaluation.card import CardError
from trainer.evaluation.results import ResultError
from trainer.evaluation.samples import SampleError
from trainer.publishing.agreement import MergeError
from trainer.publishing.gate import PublicationError
from trainer.publishing.hub import HubError
from trainer.reading.protocol import ReaderError
from trainer.tracing import span, start_tracing
from trainer.training.errors import TrainingCode, TrainingError, TrainingStopped, is_disk_full

USERS_ERRORS = (
    UsageError,
    SettingsError,
    DataError,
    SampleError,
    ReaderError,
    TooFewCasesError,
    CardError,
    ResultError,
    ContractError,
    PublicationError,
    MergeError,
    HubError,
    TrainingError,
    FileNotFoundError,
)
REFUSED_PATHS: Final = frozenset(
    {errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS}
)
"""What the system says of a path that a command cannot read or write."""
STATUS_OF_USERS_ERRORS = 2
STATUS_OF_INTERRUPTED_COMMANDS = 130
"""As shells report a process that Ctrl-C has ended."""
KEPT = {
    "prepare": "finished steps are kept: the same command continues",
    "train": "with --resume the same command continues from the newest checkpoint, if there is one",
    "reinforce": "with --resume the same command continues from the newest checkpoint, if there is one",
    "evaluate": "no record was written",
    "sweep": "with --resume the same command continues, interrupted trials included",
    "merge": "no folder was written",
    "export": "no folder was written",
    "publish": "a version is on the volume as a whole or not at all",
}
"""What an interrupted command leaves behind."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = CommandParser(prog="python -m trainer", description="Train and measure DeepSeek-OCR models.")
    commands: argparse._SubParsersAction[Any] = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    add_prepare(commands)
    add_train(commands)
    add_reinforce(commands)
    add_sweep(commands)
    add_evaluate(commands)
    add_calibrate(commands)
    add_publish(commands)
    add_volume_commands(commands)
    add_merge(commands)
    add_export(commands)
    add_push(commands)
    add_report(commands)
    add_benchmark(commands)
    add_smoke(commands, main)
    add_nano(commands)
    add_orientation(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments`, or else `sys.argv`, name; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        settings = load_settings()
        if settings.tracing:
            start_tracing()
        with span(f"trainer.{options.command}"):
            output = options.run(options, settings)
    except USERS_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return STATUS_OF_USERS_ERRORS
    except (OSError, RuntimeError, SafetensorError) as error:
        fault = file_fault(error)
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return STATUS_OF_USERS_ERRORS
    except TrainingStopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        kept = KEPT.get(options.command)
        print(f"\ninterrupted{f'; {kept}' if kept else ''}", file=sys.stderr)
        return STATUS_OF_INTERRUPTED_COMMANDS
    if output:
        print(output)
    return 0


def file_fault(error: Exception) -> str | None:
    """What is wrong with a disk or a path and what to do, in a line; None for any other error."""
    paths = [path for path in (getattr(error, "filename2", None), getattr(error, "filename", None)) if path is not None]
    if is_disk_full(error):
        disk = f"the disk of {paths[0]}" if paths else "a disk"
        return f"{disk} is full; make room and repeat the command [{TrainingCode.DISK_FULL}]"
    if isinstance(error, OSError) and error.errno in REFUSED_PATHS and paths:
        return f"{paths[0]}: {error.strerror}; name a path that can be used"
    return None
