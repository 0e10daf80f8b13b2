"""`deepsynth keys`: creates, lists and revokes keys for clients; a running service notices within a second."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from service.access.key import Key, Scope, digest_of, new_secret
from service.access.key_file import editing, read_keys
from service.cli.output import print_output
from service.cli.startup import start
from service.config import LogLevel
from service.errors import ConfigurationError

EXIT_REFUSED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command, its actions and their flags."""
    parser.description = "Manage the key file of a service, which is DEEPSYNTH_KEY_FILE or --file."
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="add a key and print its secret, which is stored nowhere")
    create.add_argument("name", metavar="NAME", help="name in logs and metrics: a-z, 0-9, - and _")
    create.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help="what the key allows, repeatable: ocr (default), samples, admin (everything)",
    )
    create.add_argument("--per-minute", type=float, metavar="N", help="documents per minute")
    create.add_argument("--concurrent", type=int, metavar="N", help="documents in work at the same time")
    create.add_argument("--days", type=float, metavar="N", help="expire after N days")
    listing = actions.add_parser("list", help="show every key without its secret")
    listing.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    revoke = actions.add_parser("revoke", help="remove a key")
    revoke.add_argument("name", metavar="NAME")
    for each in (create, listing, revoke):
        each.add_argument("--file", type=Path, help="key file")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Change or show the key file; the exit status is 1 if that is not possible."""
    path: Path | None = arguments.file or start(LogLevel.WARNING).key_file
    if path is None:
        parser.error("set DEEPSYNTH_KEY_FILE, or add --file")
    try:
        if arguments.action == "list":
            keys = read_keys(path)
            print_output(_as_json(keys) if arguments.as_json else _table(keys))
        elif arguments.action == "create":
            print_output(_create(path, arguments) + "\n")
        else:
            _revoke(path, arguments.name)
    except (_RefusedError, ConfigurationError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    except OSError as error:
        sys.stderr.write(f"{path}: {error.strerror}\n")
        return EXIT_REFUSED
    return 0


class _RefusedError(Exception):
    """Not possible; the message says why."""


def _create(path: Path, arguments: argparse.Namespace) -> str:
    """Add a key and return its secret."""
    secret, now = new_secret(), datetime.now(UTC).replace(microsecond=0)
    try:
        key = Key(
            name=arguments.name,
            sha256=digest_of(secret),
            scopes=frozenset(map(Scope, arguments.scope or [Scope.OCR])),
            requests_per_minute=arguments.per_minute,
            max_concurrent=arguments.concurrent,
            created=now,
            expires=None if arguments.days is None else now + timedelta(days=arguments.days),
        )
    except (ValidationError, OverflowError) as error:
        raise _RefusedError(_reason(error)) from None
    with editing(path) as keys:
        if key.name in {each.name for each in keys}:
            raise _RefusedError(f"{path} has a key {key.name} already; revoke it first, or choose another name")
        keys.append(key)
    return secret


def _reason(error: ValidationError | OverflowError) -> str:
    if isinstance(error, OverflowError):
        return "--days is too large"
    fault = error.errors(include_url=False, include_input=False)[0]
    flags = {"requests_per_minute": "--per-minute", "max_concurrent": "--concurrent", "name": "NAME"}
    return f"{flags.get(str(fault['loc'][0]), '')}: {str(fault['msg']).removeprefix('Value error, ')}"


def _revoke(path: Path, name: str) -> None:
    if not path.exists():
        raise _RefusedError(f"{path} does not exist")
    with editing(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise _RefusedError(f"{path} has no key {name}")
        keys[:] = left


def _as_json(keys: tuple[Key, ...]) -> str:
    rows = [key.model_dump(mode="json", exclude={"sha256"}) for key in keys]
    return json.dumps(rows, indent=1) + "\n"


def _table(keys: tuple[Key, ...]) -> str:
    if not keys:
        return "no keys\n"
    lines = []
    for key in keys:
        facts = [",".join(sorted(key.scopes))]
        if key.requests_per_minute is not None:
            facts.append(f"{key.requests_per_minute:g}/minute")
        if key.max_concurrent is not None:
            facts.append(f"{key.max_concurrent} at the same time")
        if key.expires is not None:
            facts.append(f"{'expired' if key.is_expired() else 'until'} {key.expires:%Y-%m-%d}")
        lines.append(f"{key.name:<24} {'  '.join(facts)}\n")
    return "".join(lines)
