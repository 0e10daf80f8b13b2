"""Publishers that are killed: forks children that publish, and kills each at a random moment.

Run as a program, so that the children come of a small process without threads: `publishers.py ROOT SOURCE COUNT SEED
[MODEL]`; MODEL is what they name as their base. Prints how many children ended by themselves and how many were killed,
as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from shared.contract.leftovers import sweep
from shared.contract.manifest import BaseIdentity
from shared.contract.publication import Announcement, publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import BASE, announcement

AT_ONCE = 5
LONGEST_S = 0.05
"""A busy machine kills earlier in the work, not later in the day."""
NAMES = ("invoices", "receipts")


def run(root: Path, source: Path, count: int, seed: int, base: BaseIdentity = BASE) -> dict[str, int]:
    """Publish `count` times, killing each publisher at a moment within the time that a whole one took.

    Args:
        root: The volume.
        source: A PEFT folder.
        count: Publishers.
        seed: Of the moments.
        base: What they name as their base model.

    Returns:
        How many finished and how many were killed.
    """
    volume = AdapterVolume(root)
    start = time.monotonic()
    for name in NAMES:
        publish(volume, source, announcement(name, base=base))
    whole_s = (time.monotonic() - start) / len(NAMES)
    moments = random.Random(seed)
    ends = {"finished": 0, "killed": 0, "failed": 0}
    for first in range(0, count, AT_ONCE):
        children = {}
        for number in range(first, min(first + AT_ONCE, count)):
            child = _child(volume, source, announcement(NAMES[number % len(NAMES)], base=base))
            children[child] = moments.uniform(0, min(AT_ONCE * whole_s, LONGEST_S))
        begin = time.monotonic()
        for child, moment in sorted(children.items(), key=lambda item: item[1]):
            time.sleep(max(0.0, begin + moment - time.monotonic()))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            ends["killed" if killed else "failed" if status else "finished"] += 1
    return ends


def _child(volume: AdapterVolume, source: Path, said: Announcement) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        sweep(volume, said.name)
        publish(volume, source, said)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    root, source, count, seed, *models = sys.argv[1:]
    base = BASE.model_copy(update={"model_id": models[0]}) if models else BASE
    print(json.dumps(run(Path(root), Path(source), int(count), int(seed), base)))
