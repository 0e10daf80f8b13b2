"""`python -m service`: the command line. Reads the settings once and hands them on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.config import ServiceSettings, load_settings
from service.errors import ConfigurationError
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import Mode

EXIT_USAGE = 2
_EPILOG = """\
Settings are environment variables (DEEPSYNTH_PORT, DEEPSYNTH_MODEL, ...) or lines of a file .env;
docs/configuration.md lists them all.

examples:
  python -m service serve
  python -m service ocr scan.png
  python -m service ocr --json --pages 1-3 report.pdf
"""
_OCR_EPILOG = """\
exit status: 0 every file was read, 1 some file was not, 2 wrong usage or settings, 70 the engine failed
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m service", description="Read the text of documents.", epilog=_EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve the API and the playground", description="Serve the API.")
    ocr = commands.add_parser(
        "ocr",
        help="read files and print their text; needs no server",
        description="Read files and print their text.",
        epilog=_OCR_EPILOG,
        formatter_class=raw,
    )
    ocr.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PNG, JPEG, WebP, TIFF or PDF")
    ocr.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object per file")
    ocr.add_argument("--task", choices=[str(task) for task in Task], default=str(Task.FREE), help="default: free")
    ocr.add_argument("--query", help="what to look for; with --task locate")
    ocr.add_argument("--mode", choices=[str(mode) for mode in Mode], help="resolution; default: the model's own")
    ocr.add_argument("--pages", help="pages of a PDF or TIFF, such as 1-3,7; default: all")
    ocr.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens a page may take")
    ocr.add_argument("--temperature", type=float, metavar="T", help="draw tokens, 0 to 2; default: 0, the likeliest")
    ocr.add_argument("--seed", type=int, metavar="N", help="draw the same again; with --temperature")
    _add_adapters(commands)
    describe = commands.add_parser(
        "describe",
        help="print or rewrite the generated reference pages",
        description="Print a reference page that is generated from the code, or rewrite all of them.",
    )
    describe.add_argument("page", nargs="?", help="configuration, env, errors or metrics")
    describe.add_argument("--write", type=Path, metavar="ROOT", help="rewrite every page under this repository root")
    return parser


def _add_adapters(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adapters = commands.add_parser(
        "adapters",
        help="list, pin, roll back or refuse the adapters of a running service",
        description="Give orders about adapters to a running service. DEEPSYNTH_ADMIN_KEY is the key it was started "
        "with; its address is DEEPSYNTH_HOST and DEEPSYNTH_PORT, or --url.",
    )
    actions = adapters.add_subparsers(dest="action", required=True, metavar="ACTION")
    helps = {
        "list": "where every adapter and version stands",
        "pin": "let a name stand for one version (NAME@VERSION), or follow the volume again (NAME)",
        "rollback": "take the version in use out of service and return to the last good one",
        "refuse": "take a version out of service",
    }
    for action, text in helps.items():
        parser = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        if action != "list":
            parser.add_argument("target", metavar="NAME[@VERSION]")
            parser.add_argument("--why", required=True, help="the reason, for the audit log")
        parser.add_argument("--url", help="address of the service, such as http://127.0.0.1:8000")
        parser.add_argument("--json", action="store_true", dest="as_json", help="print the service's answer")


def _run_adapters(parser: argparse.ArgumentParser, arguments: argparse.Namespace, settings: ServiceSettings) -> int:
    from service.cli.adapters import AdapterOptions, UsageError, adapters, check_target

    target, why = getattr(arguments, "target", None), getattr(arguments, "why", None)
    if arguments.action != "list":
        try:
            check_target(arguments.action, target)
        except UsageError as error:
            parser.error(str(error))
    return adapters(settings, AdapterOptions(arguments.action, target, why, arguments.url, arguments.as_json))


def _run_ocr(parser: argparse.ArgumentParser, arguments: argparse.Namespace, settings: ServiceSettings) -> int:
    from service.cli.ocr import ReadOptions, ocr

    task = Task(arguments.task)
    try:
        prompt_for(task, arguments.query)
    except ValueError as error:
        parser.error(str(error))
    options = ReadOptions(
        files=arguments.files,
        as_json=arguments.as_json,
        task=task,
        query=arguments.query,
        mode=None if arguments.mode is None else Mode(arguments.mode),
        pages=arguments.pages,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    return ocr(settings, options)


def _run_describe(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from service.cli.describe import PAGES, write_pages

    if arguments.write is not None:
        for path in write_pages(arguments.write):
            sys.stdout.write(f"{path}\n")
        return 0
    if arguments.page not in PAGES:
        parser.error(f"describe takes one of: {', '.join(PAGES)}")
    sys.stdout.write(PAGES[arguments.page].render())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None for the process's own.

    Returns:
        Exit status.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "describe":
        return _run_describe(parser, arguments)
    try:
        settings = load_settings()
        from service.telemetry.logs import configure_logs

        if arguments.command == "adapters":
            return _run_adapters(parser, arguments, settings)
        if arguments.command == "ocr":
            configure_logs("warning", settings.log_format)
            return _run_ocr(parser, arguments, settings)
        from service.cli.ocr import serve

        configure_logs(settings.log_level, settings.log_format)
        return serve(settings)
    except ConfigurationError as error:
        sys.stderr.write(f"The service cannot start:\n{error}\n")
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
