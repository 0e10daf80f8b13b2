"""`.ci/run` itself, with programs in place of make and of the system's package manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.programs import ROOT

pytestmark = pytest.mark.integration

MAKE = """#!/bin/sh
echo "begin $*" >> "$0.log"
echo "$PIP_ARGS, ${PYTHONDONTWRITEBYTECODE-kept}" >> "$0.settings"
case "$*" in
  docs) echo "page without a place" ;;
  test)
    until grep -q "end ray-env" "$0.log"; do sleep 0.02; done
    [ "$SLOW" = no ] || until [ -s "$0.pid" ]; do sleep 0.02; done ;;
  *test_image_build.py\\ --numprocesses*)
    echo "image of the API"
    [ "$SLOW" = no ] || { echo $$ > "$0.pid"; exec sleep 600; } ;;
esac
case "$FAILS" in "") ;; *) case "$*" in $FAILS) echo "$1 failed" >&2; exit 3 ;; esac ;; esac
echo "end $*" >> "$0.log"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `.ci/run` finds where it is, and the programs it may call."""
    (tmp_path / "tests" / "e2e").mkdir(parents=True)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "programs").mkdir()
    nothing = "#!/bin/sh\n"
    places = {"tests/e2e/base_image.sh": nothing, "programs/apt-get": nothing, "programs/sudo": nothing}
    for place, text in {**places, "programs/make": MAKE}.items():
        (tmp_path / place).write_text(text)
        (tmp_path / place).chmod(0o755)
    return tmp_path


def run(checkout: Path, *, fails: str = "", is_slow: bool = False) -> tuple[int, str, list[str]]:
    path = f"{checkout / 'programs'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FAILS": fails, "SLOW": "yes" if is_slow else "no"}
    done = subprocess.run(
        [checkout / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    return done.returncode, done.stdout + done.stderr, (checkout / "programs" / "make.log").read_text().splitlines()


def test_every_part_runs_once_and_what_runs_in_the_background_is_shown(checkout: Path) -> None:
    status, output, log = run(checkout)
    assert status == 0, output
    waiting = "e2e ARGS=tests/e2e/test_ray.py tests/e2e/test_image_build.py"
    others = "e2e ARGS=tests/e2e --ignore tests/e2e/test_ray.py --ignore tests/e2e/test_image_build.py"
    parts = ["setup", "check", "docs", "ray-env", "test", waiting, others]
    begun = [line.removeprefix("begin ").partition(" --numprocesses")[0] for line in log if line.startswith("begin ")]
    assert sorted(begun) == sorted(parts)
    assert begun[-1] == others
    assert "page without a place" in output
    assert "image of the API" in output


@pytest.mark.parametrize(("given", "passed"), [("", "--no-compile"), ("--pre", "--pre --no-compile")])
def test_nothing_is_compiled_ahead_and_what_is_compiled_is_kept(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, given: str, passed: str
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PIP_ARGS", given)
    status, output, log = run(checkout)
    assert status == 0, output
    settings = (checkout / "programs" / "make.settings").read_text().splitlines()
    assert settings == [f"{passed}, kept"] * len([line for line in log if line.startswith("begin ")])


@pytest.mark.parametrize("part", ["setup", "check", "docs", "ray-env", "e2e*--numprocesses*", "e2e*--ignore*"])
def test_a_part_that_fails_fails_the_run_and_says_so(checkout: Path, part: str) -> None:
    if part == "ray-env":
        # The stand-in for the tests waits for the environment of Ray.
        make = checkout / "programs" / "make"
        make.write_text(make.read_text().replace("  test)", "  never)"))
    status, output, _ = run(checkout, fails=part)
    assert status != 0
    assert f"{part.partition('*')[0]} failed" in output


def test_what_runs_in_the_background_ends_with_the_run(checkout: Path) -> None:
    status, output, _ = run(checkout, fails="test", is_slow=True)
    assert status != 0
    assert "test failed" in output
    process = Path("/proc") / (checkout / "programs" / "make.pid").read_text().strip()
    ends_s = time.monotonic() + 60
    while process.exists() and time.monotonic() < ends_s:  # until it has been reaped
        time.sleep(0.02)
    assert not process.exists()
