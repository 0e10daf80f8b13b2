import json
import subprocess
import sys

import pytest

from tests.support.programs import ROOT


def figures_of(*words: str) -> dict:
    command = [sys.executable, "benchmarks/engine_steps.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.bench
def test_batching_ends_with_its_figures():
    figures = figures_of("batching", "--nano", "--slots", "2", "--tokens", "3")
    walls_s = [figures["batching"][case]["wall_s"] for case in ("in_turn", "together")]
    assert figures["in_turn_over_together_ratio"] == pytest.approx(walls_s[0] / walls_s[1], rel=0.02)
    assert figures["batching"]["one"]["wall_s"] < walls_s[0]


@pytest.mark.bench
def test_the_host_takes_less_than_a_slow_step():
    figures = figures_of("host", "--rows", "4", "--steps", "20", "--step-ms", "20")
    assert figures["step_ms"] > 18, "the first timed step had begun before"
    assert figures["host_ms"] < figures["step_ms"]
    assert figures["events_per_step"] > 0
