import json
import subprocess
import sys

import pytest

from tests.support.programs import ROOT


def lines_of(*words: str) -> list[dict]:
    command = [sys.executable, "benchmarks/engine_steps.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def figures_of(*words: str) -> dict:
    return lines_of(*words)[-1]


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


@pytest.mark.bench
def test_encoders_in_fp8_are_compared_with_those_in_full():
    *found, last = lines_of("encoders", "--only", "ceilings,products,views,features,nothing")
    assert last["without_result"] == ["nothing"], "a part that fails does not end the others"
    assert {row["product"] for row in found if "product" in row} == {
        "norm",
        "qkv",
        "out",
        "up",
        "down",
        "mlp in pieces",
    }
    full, rounded = ([row["features_error"] for row in found if row.get("form") == form and row["part"] == "features"]
                     for form in ("bf16", "fp8"))  # fmt: skip
    assert len(full) == len(rounded) == 3
    assert max(full) < 1e-5 < min(rounded)
