"""Lock files resolve: the pins of each are complete and agree, by what the index says of them.

uv reads the metadata of each distribution, a few kilobytes, and none of the distributions themselves.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import ROOT, require

pytestmark = pytest.mark.e2e


def resolve(requirements: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            require("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--native-tls",
            "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28",
            "--output-file", str(output), str(requirements),
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def pins(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", file.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("name", ["service-cuda", "trainer-cuda"])
def test_a_lock_for_cuda_resolves_to_itself(name: str, tmp_path: Path) -> None:
    locked = pins(ROOT / "deploy" / "env" / f"{name}.txt")
    bare = tmp_path / "requirements.in"
    bare.write_text("".join(f"{package}=={version}\n" for package, version in locked.items()), encoding="utf-8")
    done = resolve(bare, tmp_path / "resolved.txt")
    assert done.returncode == 0, done.stderr
    assert pins(tmp_path / "resolved.txt") == locked


def test_pins_that_contradict_each_other_do_not_resolve(tmp_path: Path) -> None:
    locked = pins(ROOT / "deploy" / "env" / "trainer-cuda.txt")
    bare = tmp_path / "requirements.in"
    bare.write_text(f"unsloth=={locked['unsloth']}\ndatasets==5.2.0\n", encoding="utf-8")
    done = resolve(bare, tmp_path / "resolved.txt")
    assert done.returncode != 0
    assert "datasets" in done.stderr
