"""docs/api.md, "Every call": each command is sent to a service, whose answer has the members that are shown."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.nano import needs_nano
from tests.support.programs import ROOT, require
from tests.support.server import ServerProcess, running_server

pytestmark = [pytest.mark.e2e, needs_nano]

HOST = "http://127.0.0.1:8000"
LONGEST = 60


def shortened(value: Any) -> Any:
    """An answer as the page shows it: long texts cut, of long lists the first member."""
    match value:
        case dict():
            return {name: shortened(each) for name, each in value.items()}
        case list() if len(value) > 4:
            return [shortened(value[0])]
        case list():
            return [shortened(each) for each in value]
        case str() if len(value) > LONGEST:
            return f"{value[:LONGEST].rsplit(' ', 1)[0]} ..."
    return value


def shape(value: Any) -> Any:
    """What of an answer has to be as shown: names, and whether something is text, a number, or nothing."""
    match value:
        case dict():
            return {name: shape(each) for name, each in value.items()}
        case list():
            return [shape(value[0])] if value else []
        case bool() | None:
            return value
        case int() | float():
            return "number"
    return "text"


def doubtful_as(value: Any, other: Any) -> Any:
    """The value, with empty lists of doubtful words and digits where another answer has such.

    What a model doubts depends on how a processor rounds.
    """
    match value, other:
        case dict(), dict():
            return {
                name: []
                if name.startswith("doubtful_") and other.get(name) == []
                else doubtful_as(each, other.get(name))
                for name, each in value.items()
            }
        case list(), list():
            return [doubtful_as(each, another) for each, another in zip(value, other, strict=False)] + value[
                len(other) :
            ]
    return value


def examples() -> list[tuple[str, Any]]:
    """Commands, each with its answer."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = page.partition("\n## Every call\n")[2].partition("\n## ")[0]
    found = re.findall(r"```console\n(.*?)```\n\n```json\n(.*?)```", section, re.DOTALL)
    return [(command, json.loads(answer)) for command, answer in found]


class Session:
    """Sends commands as a shell would, with the ids that answers before them gave."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        page = (ROOT / "docs" / "samples" / "sample-block.png").read_bytes()
        self._ids = {"DATA_URL": f"data:image/png;base64,{base64.b64encode(page).decode()}"}

    def answer(self, command: str) -> Any:
        command = command.replace(HOST, self._server.url)
        for name, value in self._ids.items():
            command = command.replace(name, value)
        if "/jobs/" in command and "-X DELETE" not in command:
            self._wait(self._ids["JOB_ID"])
        words = shlex.split(command.replace("\\\n", " "))
        line = [require(words[0]), "--silent", "--show-error", *words[1:]]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout) if done.stdout else None
        given = answer.get("id", "") if isinstance(answer, dict) else ""
        for name, start in (("JOB_ID", "job-"), ("ANSWER_ID", "ocr-")):
            if str(given).startswith(start):
                self._ids[name] = given
        return answer

    def _wait(self, job: str) -> None:
        end_s = time.monotonic() + 600
        while self._server.get(f"/jobs/{job}").json()["state"] in ("waiting", "running"):
            assert time.monotonic() < end_s
            time.sleep(0.1)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("api")
    settings = {"JOB_DIR": folder / "jobs", "SAMPLE_DIR": folder / "samples"}
    with running_server(
        ENGINE="native",
        OCR_SAVE_SAMPLES="true",
        OCR_PRIVACY_ALLOWED="true",
        **{name: str(path) for name, path in settings.items()},
    ) as server:
        yield Session(server)


def test_every_call_is_answered_as_shown(session: Session) -> None:
    shown = examples()
    assert len(shown) > 12
    for command, expected in shown:
        answer = session.answer(command)
        # The message is what to paste into the page.
        seen, wanted = doubtful_as(shortened(answer), expected), doubtful_as(expected, shortened(answer))
        assert shape(seen) == shape(wanted), f"{command}\n{json.dumps(shortened(answer), indent=2)}"


def test_every_route_that_clients_use_is_shown() -> None:
    commands = " ".join(command for command, _ in examples())
    table = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("\n## Keys")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    routes = {path for cell in cells for path in re.findall(r"`(?:[A-Z]+ )?(/[\w/.]*)`", cell)}
    # The page itself, what has no JSON, another name of a route, and what docs/adapters.md shows.
    elsewhere = {
        "/",
        "/metrics",
        "/preview",
        "/samples",
        "/samples/ID",
        "/api/ocr/run",
        "/adapters",
        "/adapters/NAME/pin",
    }
    elsewhere |= {"/rollback", "/refuse"}
    assert elsewhere <= routes
    patterns = {route: re.sub(r"\b(?:ID|MODEL)\b", r"\\w+", route) + r"[\s?\"]" for route in routes - elsewhere}
    assert {route for route, pattern in patterns.items() if not re.search(pattern, f"{commands} ")} == set()
