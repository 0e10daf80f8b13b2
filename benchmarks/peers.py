"""Runs the other engines, each in a process of its own, and reads their rows.

A peer is a program beside this one that takes cases as JSON and prints a JSON line for each run: it owns the device
while it runs and gives all of it back.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import Case

FOLDER = Path(__file__).parent
PEERS = {"transformers": "peer_transformers.py", "vllm": "peer_vllm.py"}
"""Package that must be there, and the program that measures it."""
TIMEOUT_S = 1200.0


def run_peer(name: str, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Measure a peer.

    Args:
        name: One of `PEERS`.
        cases: What it is to read.

    Yields:
        Its rows, each as soon as it is measured; none where it is not installed, and fewer where it fails, which is
        said on the error stream.
    """
    if importlib.util.find_spec(name) is None:
        print(f"{name} is not installed here: left out", file=sys.stderr)
        return
    order = json.dumps([asdict(case) for case in cases])
    arguments = [sys.executable, str(FOLDER / PEERS[name]), order]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        # Ends the reading below as well, which has no time limit of its own.
        watch = threading.Timer(TIMEOUT_S, process.kill)
        watch.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            status = process.wait()
        finally:
            watch.cancel()
            process.kill()
    if status:
        print(f"{name} failed or took more than {TIMEOUT_S:.0f} s: exit status {status}", file=sys.stderr)


def cases_from(order: str) -> list[Case]:
    """Cases as `run_peer` sends them."""
    return [Case(**values | {"size_px": tuple(values["size_px"])}) for values in json.loads(order)]
