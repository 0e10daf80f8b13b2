"""One line that says how fast an engine is: each case against vLLM, the device's floor and the target.

Pure arithmetic over rows as `cases.row_of` makes them. A peer's figures of the same run take precedence over those
recorded in `results/`; the line says which were used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.floors import Ceilings, floor_s
from shared.deepseek_ocr.configuration import DeepseekOcrConfig

RESULTS = Path(__file__).with_name("results")
OURS = "deepsynth"

MEASURES = {
    "ttft": "wall_s",
    "ttft-page": "wall_s",
    "latency": "ms_per_token",
    "latency-page": "ms_per_token",
    "throughput": "pages_per_s",
    "prefill": "pages_per_s",
    "throughput-page": "pages_per_s",
    "prefill-page": "pages_per_s",
}
"""What a case is judged by."""
TARGETS = {
    "ttft": 0.025,
    "ttft-page": 0.050,
    "latency": 0.8,
    "throughput": 40.0,
    "prefill": 150.0,
    "throughput-page": 20.0,
    "prefill-page": 60.0,
}
"""For one H100 and the public dimensions; the measure's unit."""
FIRST_TOKEN = {"latency": "ttft", "latency-page": "ttft-page"}
"""Cases whose time per token is what they take beyond another one's time to the first."""

Row = Mapping[str, Any]


def best_rows(rows: Iterable[Row], engine: str) -> dict[str, Row]:
    """An engine's fastest row of each case, without rows of cases that were cut down."""
    full = {(case.name, case.requests, case.new_tokens) for case in CASES}
    best: dict[str, Row] = {}
    for row in rows:
        if row.get("engine") != engine or (row.get("case"), row.get("requests"), row.get("new_tokens")) not in full:
            continue
        if row.get("ablation") or row.get("clients") or row.get("adapters"):
            continue
        known = best.get(row["case"])
        if known is None or row.get("wall_s", 0) < known.get("wall_s", 0):
            best[row["case"]] = row
    return best


def measure(best: Mapping[str, Row], name: str) -> float | None:
    """A case's figure in its own unit; None without a row."""
    row = best.get(name)
    if row is None:
        return None
    key = MEASURES[name]
    if key in row:
        return float(row[key])
    first = best.get(FIRST_TOKEN.get(name, ""))
    if key != "ms_per_token" or first is None:
        return None
    return 1000 * (float(row["wall_s"]) - float(first["wall_s"])) / (int(row["new_tokens"]) - 1)


def floor_of(name: str, config: DeepseekOcrConfig, batch_size: int, ceilings: Ceilings) -> float:
    """A case's figure on a device that wastes nothing."""
    case = _case(name)
    seconds = floor_s(config, case, batch_size, ceilings)
    if MEASURES[name] == "pages_per_s":
        return case.requests / seconds
    if MEASURES[name] == "wall_s":
        return seconds
    first = floor_s(config, _case(FIRST_TOKEN[name]), batch_size, ceilings)
    return 1000 * (seconds - first) / (case.new_tokens - 1)


def times_faster(name: str, ours: float, theirs: float) -> float:
    """How many times faster `ours` is; below 1 where it is slower."""
    return ours / theirs if MEASURES[name] == "pages_per_s" else theirs / ours


def summary(
    rows: Sequence[Row],
    recorded: Sequence[Row],
    config: DeepseekOcrConfig | None,
    batch_size: int,
    ceilings: Ceilings,
    targets: Mapping[str, float],
) -> dict[str, Any]:
    """The last line of a run: for each case the engine's figure and its ratios to peers, floor and target.

    A ratio above 1 is faster than the peer; a share of the floor is at most 1. `rows` include peers of this run,
    `recorded` are peers of earlier runs. Without `config` there are no floors.
    """
    ours = best_rows(rows, OURS)
    cases: dict[str, Any] = {}
    for name, unit in MEASURES.items():
        value = measure(ours, name)
        if value is None:
            continue
        entry: dict[str, Any] = {"unit": unit, "value": _rounded(value)}
        if config is not None:
            floor = floor_of(name, config, batch_size, ceilings)
            entry |= {"floor": _rounded(floor), "floor_share_ratio": _rounded(times_faster(name, value, floor))}
        for engine in ("vllm", "transformers"):
            entry |= _against(name, value, engine, rows, recorded)
        if name in targets:
            entry |= {"target": targets[name], "target_met": times_faster(name, value, targets[name]) >= 1}
        cases[name] = entry
    return {"benchmark": "engine", "summary": cases, "ceilings": ceilings.as_row()}


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of JSON Lines files, in order."""
    return [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def recorded_peers(card_slug: str) -> list[dict[str, Any]]:
    """Peers' rows recorded on a card; none if there are none."""
    path = RESULTS / f"peers-{card_slug}.jsonl"
    return read_rows([path]) if path.is_file() else []


def _against(name: str, value: float, engine: str, rows: Sequence[Row], recorded: Sequence[Row]) -> dict[str, Any]:
    for source, candidates in (("measured in this run", rows), ("recorded", recorded)):
        theirs = measure(best_rows(candidates, engine), name)
        if theirs is not None:
            ratio = _rounded(times_faster(name, value, theirs))
            return {engine: _rounded(theirs), f"{engine}_source": source, f"{engine}_ratio": ratio}
    return {}


def _case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
