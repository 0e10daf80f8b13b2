"""Two readers by turns, each with the time of the processor that it used itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.cpu_reading import _cpu_s_of, alternate, parse_arguments
from tests.support.evaluation import write_set
from trainer.evaluation.samples import load_set

BUSY = "while True: pass"
CHILD_S = 20.0


def test_each_reader_is_charged_what_it_used_itself(tmp_path):
    samples = load_set(write_set(tmp_path, [("a.png", "line", "abcd"), ("b.png", "line", "efgh")])).samples
    used_s = {"ours": 0.0, "theirs": 0.0}

    def reader(name, cost_s, text):
        def read(_):
            used_s[name] += cost_s
            return text

        return name, ("alone", read, lambda: used_s[name])

    ours, theirs = alternate(samples, [reader("ours", 0.5, "abcd"), reader("theirs", 2.0, "")])
    assert (ours["reader"], ours["how"], ours["pages"], ours["characters"]) == ("ours", "alone", 2, 8)
    assert (ours["cpu_seconds_per_page"], theirs["cpu_seconds_per_page"]) == (0.5, 2.0)
    assert (ours["cer"], theirs["cer"]) == (0.5, 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--service", str(os.getpid())], "--service needs --alternating"),
        # No system gives out a number as high.
        (["--alternating", "--service", str(2**31 - 1)], "there is no process 2147483647"),
        (["--alternating", "--service", "0"], "there is no process 0"),
    ],
)
def test_a_service_that_could_not_be_measured_is_refused_at_once(given, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(given)
    assert message in capsys.readouterr().err
    assert parse_arguments(["--alternating", "--service", str(os.getpid())]).service == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_process_is_charged_what_its_children_use():
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    parent = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        end_s = time.monotonic() + CHILD_S
        while (used_s := _cpu_s_of(parent.pid)) < 0.5 and time.monotonic() < end_s:
            time.sleep(0.05)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert used_s >= 0.5
    assert _cpu_s_of(parent.pid) == 0.0
