"""How the trainer's processes use cores that other work uses as well."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.support.programs import ROOT

THREADS = torch.get_num_threads()

PROGRAM = """
import ctypes, os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
import trainer.cli
from trainer.__main__ import run

def main():
    assert "torch" not in sys.modules, "it has read the variable before"
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    print(getenv(b"OMP_WAIT_POLICY").decode())
    return 0

trainer.cli.main = main
sys.exit(run())
"""


def test_threads_of_an_operation_sleep_while_they_wait_for_one_another() -> None:
    # What an operating system's library reads, not Python's copy of it.
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "passive\n"), done.stderr


@pytest.mark.parametrize("time", ["first", "second"])
def test_what_a_test_sets_does_not_outlive_it(time: str) -> None:
    del time  # the second finds what the first has set, unless tests/conftest.py sets it back
    assert torch.get_num_threads() == THREADS
    torch.set_num_threads(THREADS + 1)
