"""The README's commands, typed as a newcomer would: the server starts, and the sample is read with and without it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared.contract.text import cer
from tests.support.nano import needs_nano
from tests.support.printed import number_cells
from tests.support.programs import ROOT, free_port, require, stop_session, wait_until_ready
from tests.support.transcriptions import page_xml

pytestmark = [pytest.mark.e2e, needs_nano]

ADDRESS = "127.0.0.1:8000"
TRUTH = ROOT / "docs" / "samples" / "sample-block.txt"
START_LIMIT_S = 600  # the first start installs everything
LARGEST_CER = 0.05


def commands() -> list[str]:
    """Every line of the README's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def command(start: str) -> str:
    found = [line for line in commands() if line.startswith(start)]
    assert found, f"the README has no command {start}"
    return found[0]


def environment(**changes: str) -> dict[str, str]:
    # Words that `make e2e` was given are not for the make of the README.
    words = {"ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_") and name not in words
    }
    return {**kept, "OMP_NUM_THREADS": "2", **changes}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of what `make serve` started, and the file with what it prints."""
    port = free_port()
    log: Path = tmp_path_factory.mktemp("readme") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            shlex.split(command("make serve")),
            cwd=ROOT,
            env=environment(DEEPSYNTH_PORT=str(port)),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until_ready(port, process, log, START_LIMIT_S)
        yield f"127.0.0.1:{port}", log
    finally:
        stop_session(process)


def read_with(line: str) -> str:
    words = shlex.split(line)
    done = subprocess.run(
        [require(words[0]), "--silent", "--fail-with-body", *words[1:]],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answer(served: tuple[str, Path]) -> Any:
    """To the README's line for curl."""
    line = command("curl ")
    assert ADDRESS in line
    return json.loads(read_with(line.replace(ADDRESS, served[0])))


def test_the_curl_line_reads_the_sample(answer: Any) -> None:
    assert answer["model_id"] == "nano"
    assert cer(TRUTH.read_text(encoding="utf-8"), answer["text"]) <= LARGEST_CER


def test_the_answer_has_the_fields_that_the_readme_shows(answer: Any) -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    wanted = json.loads(shown)
    assert answer.keys() == wanted.keys()
    assert answer["pages"][0].keys() == wanted["pages"][0].keys()
    assert answer["timings_ms"].keys() == wanted["timings_ms"].keys()
    assert answer["usage"].keys() == wanted["usage"].keys()


def printed_line(log: Path, start: str, limit_s: float = 120) -> str:
    """From `start` to the line's end, as soon as it is printed."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = re.findall(f"{start}.*", log.read_text(encoding="utf-8"))
        if found:
            return str(found[0])
        time.sleep(0.1)
    raise AssertionError(f"nothing printed starts with {start!r}")


def test_make_serve_prints_a_line_to_try_that_works(served: tuple[str, Path]) -> None:
    address, log = served
    line = printed_line(log, "curl ")
    assert address in line
    assert json.loads(read_with(line))["text"]


def test_the_lines_that_train_on_a_folder_of_page_xml_work_in_their_order(tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    rng = Random(1)
    letters.mkdir()
    for number in range(120):
        text = f"{number:05} {rng.randrange(10**5):05}"
        image = number_cells(text)
        image.save(letters / f"{number}.png")
        (letters / f"{number}.xml").write_text(page_xml(f"{number}.png", [text], size=image.size), encoding="utf-8")
    (tmp_path / "shared").symlink_to(ROOT / "shared")
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```console\n(.*?)```", shown, re.DOTALL) if "prepare letters" in text]
    first, *lines = block.replace("\\\n", " ").splitlines()
    assert first == "make setup"
    for line in lines:
        short = line.replace("--preset smoke", "--preset smoke --max-steps 1")
        words = [sys.executable if word == ".venv/bin/python" else word for word in shlex.split(short)]
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if " publish " in line:
            # One update teaches little; every other objection would be the README's fault.
            assert "published letters@1" in done.stdout or "not_better: CER" in done.stderr, done.stderr
        else:
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_reads_the_sample_without_a_server() -> None:
    line = command(".venv/bin/deepsynth ocr")
    done = subprocess.run(
        shlex.split(line), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert cer(TRUTH.read_text(encoding="utf-8"), done.stdout) <= LARGEST_CER
