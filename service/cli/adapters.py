"""The command line's `adapters`: an operator's orders, sent over HTTP to a running service.

Knows the API and nothing of what serves it.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from service.config import ServiceSettings
from shared.contract.identity import parse_reference
from shared.contract.refusals import VolumeError

EXIT_REFUSED = 1
TIMEOUT_S = 120.0
"""A pin waits until its version is prepared."""


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """What was asked for."""

    action: str
    """list, pin, rollback or refuse."""
    target: str | None
    """`name`, or `name@version`."""
    why: str | None
    url: str | None
    as_json: bool


class UsageError(ValueError):
    """Words of the command line that make no sense; the message says which."""


def check_target(action: str, target: str | None) -> tuple[str, int | None]:
    """Split what an action is about.

    Args:
        action: list, pin, rollback or refuse.
        target: `name` or `name@version`.

    Returns:
        Name and version.

    Raises:
        UsageError: The action wants something else.
    """
    try:
        name, version = parse_reference(target or "")
    except VolumeError:
        raise UsageError(f"{action} takes an adapter's name, or name@version") from None
    if action == "refuse" and version is None:
        raise UsageError("refuse takes a version: name@version")
    if action == "rollback" and version is not None:
        raise UsageError("rollback takes a name alone; it leaves the version in use")
    return name, version


def adapters(settings: ServiceSettings, options: AdapterOptions) -> int:
    """Give an order, or show where everything stands.

    Args:
        settings: Address and key of the service.
        options: The order.

    Returns:
        Exit status: 0, 1 when the service refused or could not be reached.
    """
    url = options.url or f"http://{settings.host}:{settings.port}"
    key = settings.admin_key.get_secret_value() if settings.admin_key else None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            response = _send(client, options)
            answer: Any = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        sys.stderr.write(f"{url}: {type(error).__name__}; is a service running there? See --url\n")
        return EXIT_REFUSED
    if response.is_error:
        sys.stderr.write(_explain(answer) + "\n")
        return EXIT_REFUSED
    found = answer["adapters"] if options.action == "list" else [answer]
    sys.stdout.write(json.dumps(answer) + "\n" if options.as_json else _table(found))
    return 0


def _send(client: httpx.Client, options: AdapterOptions) -> httpx.Response:
    if options.action == "list":
        return client.get("/adapters")
    name, version = check_target(options.action, options.target)
    body: dict[str, Any] = {"why": options.why, "who": _operator()}
    if options.action in {"pin", "refuse"}:
        body["version"] = version
    return client.post(f"/adapters/{name}/{options.action}", json=body)


def _operator() -> str:
    """Who sits at this terminal, as far as the system knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"


def _explain(problem: Mapping[str, Any]) -> str:
    facts = [f"{name}: {problem[name]}" for name in ("reason", "known", "field", "expected") if name in problem]
    return " ".join([f"{problem.get('title', 'The service answered with an error.')}", *facts])


def _table(found: list[dict[str, Any]]) -> str:
    """Names, and beneath each its versions."""
    if not found:
        return "no adapters\n"
    lines = []
    for adapter in found:
        pin = f", pinned to {adapter['pinned']}" if adapter["pinned"] else ""
        lines.append(f"{adapter['name']}: serving {adapter['serving'] or 'nothing'}{pin}")
        for version in adapter["versions"]:
            why = " ".join(str(version[key]) for key in ("reason", "detail", "fault") if version[key])
            lines.append(
                f"  {version['version']:>6}  {version['state']:<9} {version['pages']:>7} pages  {why}".rstrip()
            )
    return "\n".join(lines) + "\n"
