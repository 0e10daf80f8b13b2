"""What the engine's thread costs beside the device: a step of many rows over a runner that computes nothing.

    python benchmarks/engine_host.py [--rows 256] [--tokens 400] [--step-ms 9]

The runner hands out ready numbers at once, but lets no step end before its time, as a GPU would; what the host does
for a step overlaps with it, so a step costs the larger of the two. `host ms` is everything that the thread does but
wait: scheduling, tokens, texts and events, and encoding the events for the pipe. Prints a table and a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.random_model import NO_LOOPS
from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.lora.bank import PackedAdapter
from service.engine.lora.files import AdapterFiles
from service.engine.process.codec import EngineOutputs, encode_message
from service.engine.protocol import EngineInfo, SamplingParams, SequenceRequest, SequenceResult
from service.engine.runner import NewRow, StepOutput
from shared.deepseek_ocr.forms import PageViews, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan
from shared.deepseek_ocr.tokenizer import OcrTokenizer

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
PROMPT_TOKENS = 276


class ReadyRunner:
    """Implements `runner.Runner`; tokens are any but the special ones, and no step ends before its time."""

    depth = 1
    prepares_views = False
    kv_tokens = 1 << 30
    block_tokens = 64

    def __init__(self, rows: int, step_s: float) -> None:
        self._step_s = step_s
        self._numbers = np.random.default_rng(0).integers(10, 1800, (64, rows, 4)).astype(np.int32)
        # Log probabilities as bits, codes and runs: everything goes on.
        self._numbers[:, :, 1] = np.full((64, rows), -0.1, np.float32).view(np.int32)
        self._numbers[:, :, 2:] = 0
        self._owed: deque[tuple[float, int]] = deque()
        self._free_s = 0.0
        self._steps = 0
        self.waited_s = 0.0

    def warm_up(self) -> None:
        """Nothing to do."""

    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[Any]:
        """One view is enough."""
        del geometry
        return page.arrays[:1]

    def encode(self, views: Sequence[Any]) -> list[Any]:
        """Anything will do."""
        return list(views)

    def assemble(self, plan: ViewPlan, tokens: Sequence[Any]) -> Any:
        """Anything will do."""
        del plan
        return tokens[0]

    def open(self, rows: Sequence[NewRow]) -> None:
        """Owe their first tokens."""
        self._owe(len(rows))

    def launch(self, slots: Sequence[int]) -> None:
        """Owe one more."""
        self._owe(len(slots))

    def collect(self) -> StepOutput | None:
        """Wait until the step would have ended."""
        ends_s, count = self._owed.popleft()
        wait_s = ends_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
            self.waited_s += wait_s
        self._steps += 1
        tokens, bits, statuses, arguments = np.ascontiguousarray(self._numbers[self._steps % 64, :count].T)
        return StepOutput(tokens.tolist(), bits.view(np.float32).tolist(), statuses.tolist(), arguments.tolist())

    def rewind(self, slot: int, *, kept: int, newest_token: int, forbidden: int) -> None:
        """Never asked for."""

    def close(self, slot: int) -> None:
        """Nothing to free."""

    def pack_adapter(self, files: AdapterFiles) -> PackedAdapter:
        """Nothing of it."""
        del files
        return PackedAdapter([], 0)

    def load_adapter(self, adapter: int, packed: PackedAdapter) -> None:
        """Nothing to do."""

    def device_memory_bytes(self) -> int:
        """None."""
        return 0

    def check_integrity(self) -> None:
        """Nothing to check."""

    def _owe(self, count: int) -> None:
        self._free_s = max(self._free_s, time.perf_counter()) + self._step_s
        self._owed.append((self._free_s, count))


def main() -> None:
    """Run steps of a full engine and print what each cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=400, help="steps that are timed")
    parser.add_argument("--step-ms", type=float, default=9.0, help="what the device would take for a step")
    arguments = parser.parse_args()
    tokenizer = OcrTokenizer.from_file(NANO / "tokenizer.json")
    geometry = GeometryConfig()
    info = EngineInfo("host", "none", "none", geometry, 4096, 8192, arguments.rows)
    limits = EngineLimits(batch_size=arguments.rows, loop_rule=NO_LOOPS, idle_multiplier=100)
    runner = ReadyRunner(arguments.rows, arguments.step_ms / 1000)
    engine = TorchEngine(runner, tokenizer, info, limits)
    view = np.zeros((1, 1, 3), np.uint8)
    plan = ViewPlan(Mode.BASE, 1, 1, 0, 0, PROMPT_TOKENS - 11)
    # Twice as many pages as there are slots, so that some wait all the time.
    for index in range(2 * arguments.rows):
        page = PageViews(plan, view, np.zeros((0, 1, 1, 3), np.uint8))
        engine.submit(SequenceRequest(f"page-{index:08d}", page, "\nFree OCR.", SamplingParams(4000), "host"))
    for _ in range(20):
        engine.step()
    runner.waited_s, began_s, cpu_s, num_events, num_bytes = 0.0, time.perf_counter(), time.thread_time(), 0, 0
    worst_s = 0.0
    for _ in range(arguments.tokens):
        step_s, waited_s = time.perf_counter(), runner.waited_s
        events = engine.step()
        if events:
            num_bytes += len(encode_message(EngineOutputs(tuple(events), engine.stats())))
        assert not any(isinstance(event, SequenceResult) for event in events)
        num_events += len(events)
        worst_s = max(worst_s, time.perf_counter() - step_s - (runner.waited_s - waited_s))
    wall_s, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
    result = {
        "benchmark": "engine_host",
        "rows": arguments.rows,
        "device_step_ms": arguments.step_ms,
        "step_ms": round(wall_s / arguments.tokens * 1000, 3),
        "host_ms": round((wall_s - runner.waited_s) / arguments.tokens * 1000, 3),
        "host_cpu_ms": round(cpu_s / arguments.tokens * 1000, 3),
        "host_worst_ms": round(worst_s * 1000, 3),
        "events_per_step": round(num_events / arguments.tokens, 1),
        "pipe_bytes_per_step": round(num_bytes / arguments.tokens),
    }
    for name, value in result.items():
        print(f"{name:<20} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
