"""`deepsynth`, the same as `python -m service`: the command line.

Each command is a module of `service.cli` with `add_arguments` and `run`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from service.cli.output import OutputError, prepare_standard_output
from service.errors import ConfigurationError

PROGRAM = "deepsynth"
"""The console script that the package installs."""
OUR_PACKAGES = {"service", "shared"}
EXTRAS = {"pyarrow": "service,bulk", "ray": "service,bulk,ray"}
"""Extras that bring packages which the extra `service` does not."""
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""As shells report a process that Ctrl-C has ended."""
COMMANDS = {
    "serve": "serve the API and the playground",
    "ocr": "read files and print or write their text; needs no server",
    "bulk": "read many documents into Parquet files, and go on after an interruption",
    "adapters": "list, pin, roll back or refuse the adapters of a running service",
    "keys": "create, list or revoke the keys that clients send",
    "describe": "print or rewrite the generated reference pages",
}
"""Names of modules in `service.cli`, with the line that `--help` shows."""
_EPILOG = """\
Settings are environment variables (DEEPSYNTH_PORT, DEEPSYNTH_MODEL, ...) or lines of a file .env;
docs/configuration.md lists them all.

examples:
  {program} serve
  {program} ocr scan.png
  {program} ocr --json --pages 1-3 report.pdf
  {program} ocr scans/ --format searchable-pdf --out out/
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None for the process's own.

    Returns:
        Exit status.
    """
    prepare_standard_output()
    given = sys.argv[1:] if argv is None else list(argv)
    program = PROGRAM if Path(sys.argv[0]).stem == PROGRAM else "python -m service"
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=program,
        description="Read the text of documents.",
        epilog=_EPILOG.format(program=program),
        formatter_class=raw,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: subparsers.add_parser(name, help=text, formatter_class=raw) for name, text in COMMANDS.items()}
    if not given or given[0] not in COMMANDS:
        if given:
            parser.parse_args(given)  # It ends the process.
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        # Only the command that runs is imported: `adapters` and `describe` need no engine.
        command = importlib.import_module(f"service.cli.{given[0]}")
        command.add_arguments(parsers[given[0]])
        status: int = command.run(parsers[given[0]], parser.parse_args(given))
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\nInterrupted.{''.join(f' {text}' for text in interrupt.args)}\n")
        return EXIT_INTERRUPTED
    except OutputError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return error.status
    except ConfigurationError as error:
        sys.stderr.write(f"The service cannot start:\n{error}\n")
        return EXIT_USAGE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OUR_PACKAGES:
            raise
        extras = EXTRAS.get(error.name.partition(".")[0], "service")
        sys.stderr.write(
            f"{PROGRAM}: the package {error.name} is missing; install what this command needs: "
            f'pip install "deepsynth-ocr[{extras}]"\n'
        )
        return EXIT_USAGE
    return status


if __name__ == "__main__":
    sys.exit(main())
