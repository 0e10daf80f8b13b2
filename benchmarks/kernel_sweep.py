"""Which constants suit each kernel on this card: candidates timed as `kernel_speed.py` times; needs CUDA.

Background: the kernels choose nothing at run time. Their constants are set by hand from what this prints, so that a
service starts fast and always runs what was measured. Candidates are compiled by several processes first, into
Triton's cache, and timed by one.

    python benchmarks/kernel_sweep.py                    all groups, some five minutes with 16 cores
    python benchmarks/kernel_sweep.py linear routing     these; see GROUPS in sweep_tiles.py and sweep_settings.py
    python benchmarks/kernel_sweep.py --limit 90 wide    seconds for compiling, and as many for timing

Prints for each kernel and size what is chosen, the best and the worst, and a JSON line; `--out FILE` appends that to a
file, `--out auto` to the committed results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import kernel_speed as bench
from benchmarks import sweep_settings, sweep_tiles
from benchmarks.origin import command, keep, origin
from benchmarks.sweep import Sweep

SHOWN, KEPT = 2, 10
GROUPS: dict[str, Callable[[], list[Sweep]]] = {**sweep_settings.GROUPS, **sweep_tiles.GROUPS}


def compile_share(index: int, groups: list[str], num_processes: int, deadline_s: float) -> None:
    """Compile every so manieth candidate of the groups, until the deadline on the wall clock."""
    # A compiling process needs small inputs only; large ones of all would not fit into the card.
    bench.L2_BYTES = 0
    with torch.inference_mode():
        for group in groups:
            candidates = [(sweep, config) for sweep in GROUPS[group]() for config in sweep.candidates]
            for sweep, config in candidates[index::num_processes]:
                if time.time() > deadline_s:
                    return
                sweep.prepare()
                attempt(partial(sweep.call, config, 0), is_silent=True)
            del candidates
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def attempt(call: Callable[[], Any], *, is_silent: bool = False) -> Any:
    """What the call gives; None where a candidate does not fit the card."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 -- a candidate's failure is a result: it is left out, and said
        if not is_silent:
            print(f"  left out: {(str(error) or repr(error)).splitlines()[0][:100]}", flush=True)
        return None


def time_sweep(sweep: Sweep, deadline_s: float) -> dict[str, Any]:
    """Time all candidates, the chosen one twice: first and last.

    Returns:
        Microseconds of the chosen, of the best and of the worst, and how many were timed. Where two runs of the chosen
        one differ, the lower counts, and the difference says what is noise.
    """
    times: dict[str, float] = {}
    candidates = sweep.candidates
    repeated_us = None
    for config in [*candidates, candidates[0]]:
        if time.time() > deadline_s:
            break
        sweep.prepare()
        us = attempt(partial(bench.time_us, partial(sweep.call, config), sweep.copies, budget_ms=3.0))
        if us is None:
            continue
        name = str(config)
        if name in times:
            repeated_us = round(abs(us - times[name]), 2)
        times[name] = round(min(us, times.get(name, us)), 2)
    ranked = sorted(times.items(), key=lambda item: item[1])
    chosen = str(sweep.chosen)
    return {
        "sweep": sweep.name,
        "chosen": [chosen, times.get(chosen)],
        "apart_us": repeated_us,
        "best": ranked[:KEPT],
        "worst": ranked[-1] if ranked else None,
        "library": times.get(sweep_tiles.LIBRARY),
        "timed": len(times),
        "candidates": len(candidates),
    }


def show(result: dict[str, Any]) -> None:
    """Print one kernel's lines."""
    name, us = result["chosen"]
    apart = f", again {result['apart_us']} apart" if result["apart_us"] is not None else ""
    print(f"{result['sweep']}: {result['timed']} of {result['candidates']}, worst {result['worst']}")
    print(f"  chosen {us}  {name}{apart}")
    for name, us in result["best"][:SHOWN]:
        print(f"  {us:8.2f}  {name}", flush=True)


def main() -> None:
    """Compile, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], default=[], metavar="group")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for compiling, and again for timing")
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--out", help="file, or auto")
    arguments = parser.parse_args()
    groups = arguments.groups or list(GROUPS)
    began_s = time.time()
    processes = arguments.processes
    spawn(compile_share, (groups, processes, began_s + arguments.limit), nprocs=processes)
    print(f"compiled after {time.time() - began_s:.0f} s", flush=True)
    deadline_s = time.time() + arguments.limit
    with torch.inference_mode():
        for group in groups:
            rows = []
            for sweep in GROUPS[group]():
                rows.append(time_sweep(sweep, deadline_s))
                show(rows[-1])
            # At once: a run that is cut short keeps what it has found out.
            source = origin("cuda") | {"command": command()}
            for row in rows:
                keep({"benchmark": "kernel-sweep"} | row | source, arguments.out)
            torch.cuda.empty_cache()
    print(f"timed after {time.time() - began_s:.0f} s")


if __name__ == "__main__":
    main()
