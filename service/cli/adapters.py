"""`deepsynth adapters`: manages the adapters of a running service over HTTP.

Uses the API alone, no other part of the service.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from service.cli.output import print_output
from service.cli.startup import start
from service.config import LogLevel, ServiceSettings
from shared.contract.identity import parse_reference
from shared.contract.refusals import VolumeError

EXIT_REFUSED = 1
TIMEOUT_S = 120.0
"""A pin returns once its version is loaded."""


_ACTIONS = {
    "list": "show the state of every adapter and version",
    "pin": "make a name serve one version (NAME@VERSION), or follow the volume again (NAME)",
    "rollback": "take the version in use out of service and return to the last good one",
    "refuse": "take a version out of service",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command, its actions and their flags."""
    parser.description = (
        "Manage the adapters of a running service. DEEPSYNTH_ADMIN_KEY is the key it was started with; "
        "its address is DEEPSYNTH_HOST and DEEPSYNTH_PORT, or DEEPSYNTH_ADMIN_HOST and DEEPSYNTH_ADMIN_PORT where "
        "that is set, or --url."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in _ACTIONS.items():
        command = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        if action != "list":
            command.add_argument("target", metavar="NAME[@VERSION]")
            command.add_argument("--why", required=True, help="the reason, for the audit log")
        command.add_argument("--url", help="address of the service, such as http://127.0.0.1:8000")
        command.add_argument("--json", action="store_true", dest="as_json", help="print the service's answer")


def _address(settings: ServiceSettings) -> str:
    if settings.admin_port is None:
        return f"http://{settings.host}:{settings.port}"
    return f"http://{settings.admin_host or settings.host}:{settings.admin_port}"


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Send a command to the service and print its answer; the exit status is 1 if it refused or was not reached."""
    settings = start(LogLevel.WARNING)
    try:
        path, body = _request(arguments)
    except _UsageError as error:
        parser.error(str(error))
    url = arguments.url or _address(settings)
    key = settings.admin_key.get_secret_value() if settings.admin_key else None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            response = client.get(path) if body is None else client.post(path, json=body)
            answer: Any = response.json()
            while not response.is_error and answer.get("next"):
                response = client.get(path, params={"after": answer["next"]})
                part: Any = response.json()
                answer = part if response.is_error else {**part, "adapters": [*answer["adapters"], *part["adapters"]]}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        sys.stderr.write(f"{url}: {type(error).__name__}; is a service running there? See --url\n")
        return EXIT_REFUSED
    if response.is_error:
        sys.stderr.write(_explain(answer) + "\n")
        return EXIT_REFUSED
    found = answer["adapters"] if arguments.action == "list" else [answer]
    print_output(json.dumps(answer) + "\n" if arguments.as_json else _table(found, answer.get("misnamed", ())))
    return 0


class _UsageError(ValueError):
    """Arguments that do not fit the action; the message says what does."""


def _request(arguments: argparse.Namespace) -> tuple[str, dict[str, Any] | None]:
    """Path and JSON body of an action; no body means GET."""
    action: str = arguments.action
    if action == "list":
        return "/adapters", None
    try:
        name, version = parse_reference(arguments.target)
    except VolumeError:
        raise _UsageError(f"{action} takes an adapter's name, or name@version") from None
    if action == "refuse" and version is None:
        raise _UsageError("refuse takes a version: name@version")
    if action == "rollback" and version is not None:
        raise _UsageError("rollback takes a name without a version; it leaves the version in use")
    body: dict[str, Any] = {"why": arguments.why, "who": _operator()}
    return f"/adapters/{name}/{action}", body if action == "rollback" else {**body, "version": version}


def _operator() -> str:
    """The system's name for the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"


def _explain(problem: Mapping[str, Any]) -> str:
    facts = [f"{name}: {problem[name]}" for name in ("reason", "known", "field", "expected") if name in problem]
    return " ".join([f"{problem.get('title', 'The service answered with an error.')}", *facts])


def _table(found: Sequence[Mapping[str, Any]], misnamed: Sequence[str]) -> str:
    """Each name, followed by its versions; then folders that are none."""
    lines = [] if found else ["no adapters"]
    for adapter in found:
        pin = f", pinned to {adapter['pinned']}" if adapter["pinned"] else ""
        lines.append(f"{adapter['name']}: serving {adapter['serving'] or 'nothing'}{pin}")
        for version in adapter["versions"]:
            why = " ".join(str(version[key]) for key in ("reason", "detail", "fault") if version[key])
            lines.append(
                f"  {version['version']:>6}  {version['state']:<9} {version['pages']:>7} pages  {why}".rstrip()
            )
        lines += [f"  {each['folder']:>6}  not served {each['reason']}" for each in adapter.get("unpublished", ())]
    lines += [f"{name!r}: not served, this is not the name of an adapter" for name in misnamed]
    return "\n".join(lines) + "\n"
