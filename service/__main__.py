"""`python -m service`: the command line. Each command is a module of `service.cli` with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from service.errors import ConfigurationError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""As shells report a process that Ctrl-C has ended."""
COMMANDS = {
    "serve": "serve the API and the playground",
    "ocr": "read files and print their text; needs no server",
    "adapters": "list, pin, roll back or refuse the adapters of a running service",
    "describe": "print or rewrite the generated reference pages",
}
"""Names of modules in `service.cli`, with the line that `--help` shows."""
_EPILOG = """\
Settings are environment variables (DEEPSYNTH_PORT, DEEPSYNTH_MODEL, ...) or lines of a file .env;
docs/configuration.md lists them all.

examples:
  python -m service serve
  python -m service ocr scan.png
  python -m service ocr --json --pages 1-3 report.pdf
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None for the process's own.

    Returns:
        Exit status.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m service", description="Read the text of documents.", epilog=_EPILOG, formatter_class=raw
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: subparsers.add_parser(name, help=text, formatter_class=raw) for name, text in COMMANDS.items()}
    if not given or given[0] not in COMMANDS:
        parser.parse_args(given)
        return EXIT_USAGE  # Not reached: argparse exits.
    try:
        # Only the command that runs is imported: `adapters` and `describe` need no engine.
        command = importlib.import_module(f"service.cli.{given[0]}")
        command.add_arguments(parsers[given[0]])
        status: int = command.run(parsers[given[0]], parser.parse_args(given))
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\nInterrupted.{''.join(f' {text}' for text in interrupt.args)}\n")
        return EXIT_INTERRUPTED
    except ConfigurationError as error:
        sys.stderr.write(f"The service cannot start:\n{error}\n")
        return EXIT_USAGE
    return status


if __name__ == "__main__":
    sys.exit(main())
