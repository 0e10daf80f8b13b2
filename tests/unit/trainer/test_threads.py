"""How the trainer's processes use cores that other work uses as well."""

from __future__ import annotations

import subprocess
import sys

from tests.support.programs import ROOT

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
