import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "benchmarks" / "batching.py"


@pytest.mark.bench
def test_batching_ends_with_its_figures():
    options = ["--random", "--pages", "2", "--tokens", "3", "--repeats", "1"]
    output = subprocess.run([sys.executable, PROGRAM, *options], capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    assert figures["new_tokens_per_page"] == 3
    assert figures["in_turn_over_together_ratio"] == pytest.approx(
        figures["pages_in_turn_s"] / figures["pages_together_s"], rel=0.02
    )
