"""Each kernel of the GPU engine at the public dimensions, compared with its floor and with cuBLAS or torch; needs CUDA.

A decode step is bound by reading weights and keys, so each line says how near a kernel comes to reading its bytes at
3.0 TB/s, or to its arithmetic at 500 TFLOP/s, whichever takes longer. Calls are captured in one CUDA graph that goes
round several copies of weights and caches, more than fit into the card's L2, as a model's layers do. `step` is a whole
decode step of 12 layers with their own weights. Functions import Triton's kernels themselves, so that `--help` works
without Triton.

    python benchmarks/kernel_speed.py                      every kernel
    python benchmarks/kernel_speed.py step linear          only these
    python benchmarks/kernel_speed.py --early 0 step       no kernel starts before its predecessor ends
    python benchmarks/kernel_speed.py --sizes 1,16 mixture

Prints a table, and one JSON object as the last line of its output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.engine.gpu.paged_cache import BLOCK_TOKENS
from service.engine.gpu.state import AnswerState
from service.engine.kernels.int8_rows import to_int8
from shared.contract.repetition import LoopRule

HIDDEN, HEADS, WIDTH, INNER, DENSE, EXPERTS, SHARED, CHOSEN, VOCABULARY, LAYERS = (
    1280, 10, 128, 896, 6848, 64, 2, 6, 129280, 12,
)  # fmt: skip
CONTEXT, BLOCK = 530, BLOCK_TOKENS
BYTES_PER_S, FLOPS_PER_S = 3.0e12, 500e12
L2_BYTES = 50e6
EPS, SCALE = 1e-6, WIDTH**-0.5
DECODE_SIZES, PREFILL_SIZES = (1, 4, 16, 64, 128, 256), (4096,)
Call = Callable[[int], object]
"""Does the work once, with the copy of the given number."""


@dataclass(frozen=True, slots=True)
class Line:
    """One kernel at one size."""

    name: str
    tokens: int
    us: float
    floor_us: float
    """By bytes or by arithmetic."""
    torch_us: float | None

    @property
    def ratio(self) -> float:
        """Time over floor."""
        return self.us / self.floor_us


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed."""

    name: str
    tokens: int
    bytes: float
    """That must be read or written once."""
    flops: float
    copies: int
    call: Call
    counterpart: Call | None = None

    def measure(self) -> Line:
        """Time it."""
        floor_us = max(self.bytes / BYTES_PER_S, self.flops / FLOPS_PER_S) * 1e6
        other = time_us(self.counterpart, self.copies) if self.counterpart else None
        return Line(self.name, self.tokens, time_us(self.call, self.copies), floor_us, other)


def time_us(call: Call, copies: int, budget_ms: float = 20.0) -> float:
    """Microseconds of a call within a graph that goes round the copies; the fastest of five replays."""
    for copy in range(min(copies, 2)):
        call(copy)
    torch.cuda.synchronize()
    start = time.perf_counter()
    call(0)
    torch.cuda.synchronize()
    rounds = max(1, min(20, round(budget_ms / 5 / (copies * (time.perf_counter() - start) * 1e3))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for copy in range(copies):
                call(copy)
    times = []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    for _ in range(5):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / (rounds * copies))
    return min(times)


def noise(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random numbers on the card."""
    return (torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale).to(dtype)


def copies_for(size_bytes: float) -> int:
    """Copies that together do not fit into the L2 cache; one where nothing is timed, see `kernel_sweep`."""
    if not L2_BYTES:
        return 1
    return max(2, min(64, int(3 * L2_BYTES / size_bytes) + 1))


def over(copies: Sequence[Tensor], function: Callable[[Tensor], object]) -> Call:
    """The function of one copy."""
    return lambda i: function(copies[i])


def linear_cases(tokens: int) -> list[Case]:
    """Query-key-value, output and head projections."""
    from service.engine.kernels.triton import decoder as fused

    cases = []
    x, norm = noise(tokens, HIDDEN), noise(HIDDEN)
    for name, outputs in (("qkv", 3 * HIDDEN), ("o", HIDDEN), ("head", VOCABULARY)):
        size = outputs * HIDDEN * 2
        weights = [noise(outputs, HIDDEN, scale=0.02) for _ in range(copies_for(size))]
        traffic = size + 2 * tokens * (HIDDEN + outputs)
        flops = 2 * tokens * outputs * HIDDEN
        call = over(weights, lambda w: fused.linear(x, w))
        other = over(weights, lambda w: F.linear(x, w))
        cases.append(Case(f"linear {name}", tokens, traffic, flops, len(weights), call, other))
        if name == "o":
            call = over(weights, partial(_add_to, noise(tokens, outputs), x))
            cases.append(Case("linear_add o", tokens, traffic, flops, len(weights), call))
        else:
            call = over(weights, lambda w: fused.norm_linear(x, norm, EPS, w))
            cases.append(Case(f"norm_linear {name}", tokens, traffic, flops, len(weights), call))
    return cases


def norm_cases(tokens: int) -> list[Case]:
    """Norms and routing."""
    from service.engine.kernels.triton import decoder as fused

    x, residual, norm = noise(tokens, HIDDEN), noise(tokens, HIDDEN), noise(HIDDEN)
    gates = [noise(EXPERTS, HIDDEN, scale=0.05, dtype=torch.float32) for _ in range(64)]
    size = tokens * HIDDEN * 2
    gate_size = EXPERTS * HIDDEN * 4
    flops = 2 * tokens * HIDDEN * EXPERTS
    norm_route = over(gates, lambda gate: fused.norm_route(x, norm, EPS, gate, CHOSEN, False, 1.0, SHARED))
    return [
        Case("add_rms_norm", tokens, 4 * size, 0, 2, lambda _: fused.add_rms_norm(x, residual, norm, EPS)),
        Case("rms_norm", tokens, 2 * size, 0, 2, lambda _: fused.rms_norm(x, norm, EPS),
             lambda _: F.rms_norm(x, (HIDDEN,), norm, EPS)),
        Case("route", tokens, size + gate_size, flops, 64, lambda i: fused.route(x, gates[i], CHOSEN, False, 1.0, 2)),
        Case("norm_route", tokens, 2 * size + gate_size, flops, 64, norm_route),
    ]  # fmt: skip


def routed(tokens: int) -> tuple[Tensor, Tensor]:
    """Weights and experts of a random router."""
    from service.engine.kernels.triton import decoder as fused

    x, gate = noise(tokens, HIDDEN), noise(EXPERTS, HIDDEN, dtype=torch.float32)
    return fused.route(x, gate, CHOSEN, False, 1.0, SHARED)


def _add_to(residual: Tensor, x: Tensor, weight: Tensor) -> None:
    from service.engine.kernels.triton import decoder as fused

    fused.linear_add(x, weight, residual)


def mixture_cases(tokens: int) -> list[Case]:
    """The mixture, and the first layer's dense MLP as a mixture of one."""
    from service.engine.kernels.triton import decoder as fused

    cases = []
    for name, experts, inner in (
        ("mixture", EXPERTS + SHARED, INNER),
        ("mixture int8", EXPERTS + SHARED, INNER),
        ("dense", 1, DENSE),
    ):
        is_int8 = name.endswith("int8")
        x, residual = noise(tokens, HIDDEN), noise(tokens, HIDDEN)
        ones = torch.ones(tokens, 1, device="cuda"), torch.zeros(tokens, 1, dtype=torch.int32, device="cuda")
        weights, chosen = routed(tokens) if experts > 1 else ones
        layers: list[tuple[Any, Any]] = [
            (noise(experts, 2 * inner, HIDDEN, scale=0.02), noise(experts, HIDDEN, inner, scale=0.02))
            for _ in range(8 if tokens <= 8 else 3)
        ]
        if is_int8:
            layers = [(to_int8(gate_up, x.device), to_int8(down, x.device)) for gate_up, down in layers]
        used = len(chosen.unique())
        traffic = used * 3 * inner * HIDDEN * (1 if is_int8 else 2) + 4 * tokens * HIDDEN * 2
        flops = 2.0 * chosen.numel() * 3 * inner * HIDDEN

        def call(
            i: int, x: Any = x, w: Any = weights, e: Any = chosen, layers: Any = layers, residual: Any = residual
        ) -> None:
            gate_up, down = layers[i]
            fused.mixture_add(x, w, e, gate_up, down, residual)

        def other(i: int, x: Any = x, layers: Any = layers) -> Tensor:
            gate, up = F.linear(x, layers[i][0][0]).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, layers[i][1][0])

        cases.append(Case(name, tokens, traffic, flops, len(layers), call, other if experts == 1 else None))
    return cases


def rotary() -> tuple[Tensor, Tensor]:
    """Tables of sines' sizes; their values do not matter."""
    return noise(8192, WIDTH, dtype=torch.float32), noise(8192, WIDTH, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Rows of one length, their blocks scattered over each of several caches."""

    qkv: Tensor
    caches: list[Tensor]
    rest: tuple[Tensor, ...]
    """Cosines, sines, positions, cells, tables, lengths."""

    def arguments(self, copy: int) -> tuple[Any, ...]:
        """Of `decode_attention`."""
        return self.qkv, *self.rest[:4], *self.caches[copy], *self.rest[4:], SCALE


def attention_inputs(rows: int, context: int, block: int = BLOCK) -> AttentionInputs:
    """Random ones, in a cache of such blocks."""
    blocks = -(-context // block)
    copies = copies_for(rows * context * 4 * HIDDEN)
    tables = torch.randperm(rows * blocks, device="cuda").int().view(rows, blocks)
    lengths = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    cells = tables[:, -1].long() * block + (context - 1) % block
    caches = [noise(2, rows * blocks, HEADS, block, WIDTH) for _ in range(copies)]
    return AttentionInputs(noise(rows, 3, HEADS, WIDTH), caches, (*rotary(), lengths - 1, cells, tables, lengths))


def attention_cases(rows: int) -> list[Case]:
    """One new token a row."""
    from service.engine.kernels.triton import decoder as fused

    inputs = attention_inputs(rows, CONTEXT)
    size, copies = rows * CONTEXT * 4 * HIDDEN, len(inputs.caches)

    def paged(i: int) -> Tensor:
        return fused.paged_attention(inputs.qkv[:, 0], *inputs.arguments(i)[5:])

    return [
        Case("decode_attention", rows, size, 0, copies, lambda i: fused.decode_attention(*inputs.arguments(i))),
        Case("paged_attention", rows, size, 0, copies, paged),
        Case("rotate_and_store", rows, rows * HIDDEN * 2 * 7, 0, copies,
             lambda i: fused.rotate_and_store(*inputs.arguments(i)[:7])),
    ]  # fmt: skip


def prefill_cases(tokens: int) -> list[Case]:
    """Attention within prompts of 276 tokens, and writing their keys into the cache."""
    from service.engine.kernels.triton import decoder as fused

    length = 276
    prompts = tokens // length
    q, k, v = noise(tokens, 3, HEADS, WIDTH).unbind(1)
    starts = torch.arange(prompts + 1, dtype=torch.int32, device="cuda") * length
    flops = prompts * 2 * length * length * HEADS * WIDTH
    query, key, value = [x[: prompts * length].unflatten(0, (prompts, length)).transpose(1, 2) for x in (q, k, v)]
    return [
        Case("prefill_attention", tokens, 4 * q.numel() * 2, flops, 2,
             lambda _: fused.prefill_attention(q, k, v, starts, length, SCALE),
             lambda _: F.scaled_dot_product_attention(query, key, value, is_causal=True)),
    ]  # fmt: skip


def choose_cases(rows: int) -> list[Case]:
    """The next token of every row."""
    from service.engine.kernels.triton import decoder as fused

    state = AnswerState.create(rows, 8192, LoopRule(), -1, "cuda")
    state.open(list(range(rows)), [276] * rows, [8192] * rows)
    slots = torch.arange(rows, device="cuda")
    logits = [noise(rows, VOCABULARY) for _ in range(max(2, min(64, 600 // rows)))]
    rule = LoopRule(min_tokens=1 << 20)
    embeddings, tables = noise(VOCABULARY, HIDDEN), torch.zeros(rows + 1, 64, dtype=torch.int32, device="cuda")
    size = rows * VOCABULARY * 2
    return [
        Case("choose", rows, size, 0, len(logits), lambda i: fused.choose(logits[i], slots, state, rule),
             lambda i: logits[i].argmax(dim=-1)),
        Case("begin_step", rows, rows * HIDDEN * 4, 0, 2,
             lambda _: fused.begin_step(slots, state, embeddings, tables, BLOCK)),
    ]  # fmt: skip


def step_cases(sizes: Sequence[int]) -> list[Case]:
    """A decode step of the whole model, as the composition in `reference` describes it."""
    from service.engine.kernels.triton import decoder as fused

    norm = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    qkvs = [noise(3 * HIDDEN, HIDDEN, scale=0.02) for _ in range(LAYERS)]
    outs = [noise(HIDDEN, HIDDEN, scale=0.02) for _ in range(LAYERS)]
    gates = [noise(EXPERTS, HIDDEN, scale=0.05, dtype=torch.float32) for _ in range(LAYERS)]
    experts = [
        (noise(n, 2 * inner, HIDDEN, scale=0.02), noise(n, HIDDEN, inner, scale=0.02))
        for n, inner in [(1, DENSE)] + [(EXPERTS + SHARED, INNER)] * (LAYERS - 1)
    ]
    head, embeddings = noise(VOCABULARY, HIDDEN, scale=0.02), noise(VOCABULARY, HIDDEN)
    cos, sin = rotary()
    blocks_of_row = -(-(CONTEXT + 64) // BLOCK)
    caches: list[Any] = [noise(2, max(sizes) * blocks_of_row, HEADS, BLOCK, WIDTH) for _ in range(LAYERS)]
    rule = LoopRule(min_tokens=1 << 20)

    def make(rows: int) -> Case:
        state = AnswerState.create(rows, 8192, rule, -1, "cuda")
        state.open(list(range(rows)), [CONTEXT] * rows, [8192] * rows)
        state.token_S[:rows] = torch.arange(rows, device="cuda")
        slots = torch.arange(rows, device="cuda")
        tables = torch.randperm(rows * blocks_of_row, device="cuda").int().view(rows, blocks_of_row)
        tables = torch.cat((tables, tables[:1]))
        ones = torch.ones(rows, 1, device="cuda"), torch.zeros(rows, 1, dtype=torch.int32, device="cuda")

        def step(_: int) -> Tensor:
            # Positions would run out of the tables otherwise.
            state.position_S.fill_(CONTEXT - 1)
            x, positions, lengths, cells, row_tables = fused.begin_step(slots, state, embeddings, tables, BLOCK)
            for layer in range(LAYERS):
                qkv = fused.norm_linear(x, norm, EPS, qkvs[layer]).view(rows, 3, HEADS, WIDTH)
                keys, values = caches[layer]
                seen = fused.decode_attention(qkv, cos, sin, positions, cells, keys, values, row_tables, lengths, SCALE)
                fused.linear_add(seen.view(rows, HIDDEN), outs[layer], x)
                if layer:
                    routed = fused.norm_route(x, norm, EPS, gates[layer], CHOSEN, False, 1.0, SHARED)
                    fused.mixture_add(*routed, *experts[layer], x)
                else:
                    fused.mixture_add(fused.rms_norm(x, norm, EPS), *ones, *experts[0], x)
            return fused.choose(fused.norm_linear(x, norm, EPS, head), slots, state, rule)

        expected_experts = EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** rows) + SHARED
        weights: float = LAYERS * 4 * HIDDEN**2 + 3 * DENSE * HIDDEN + VOCABULARY * HIDDEN
        weights += (LAYERS - 1) * expected_experts * 3 * INNER * HIDDEN
        cached = rows * CONTEXT * LAYERS * 2 * HIDDEN
        return Case("step", rows, 2 * (weights + cached), 0, 1, step)

    return [make(rows) for rows in sizes]


GROUPS: dict[str, Callable[[int], list[Case]]] = {
    "linear": linear_cases,
    "norm": norm_cases,
    "mixture": mixture_cases,
    "attention": attention_cases,
    "prefill": prefill_cases,
    "choose": choose_cases,
}


def cases_of(group: str, sizes: Sequence[int] | None) -> list[Callable[[], list[Case]]]:
    """Cases of a group, each made when its turn comes, so that one at a time is in memory."""
    if group == "step":
        return [lambda: step_cases(sizes or DECODE_SIZES)]
    default: tuple[int, ...] = PREFILL_SIZES if group == "prefill" else DECODE_SIZES
    if group in {"mixture", "norm"}:
        default += PREFILL_SIZES
    return [partial(GROUPS[group], size) for size in sizes or default]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", default=["step", *GROUPS], help=f"of step, {', '.join(GROUPS)}")
    parser.add_argument("--sizes", help="tokens, separated by commas")
    parser.add_argument("--early", type=int, help="tokens up to which kernels start before their predecessor ends")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs CUDA")
    sizes = [int(size) for size in arguments.sizes.split(",")] if arguments.sizes else None
    if arguments.early is not None:
        from service.engine.kernels.triton import launch

        launch.start_early(arguments.early)
    torch.manual_seed(0)
    lines = []
    print(f"{'kernel':18s} {'tokens':>6s} {'us':>9s} {'floor':>8s} {'ratio':>6s} {'torch us':>9s}")
    for group in arguments.groups:
        for make in cases_of(group, sizes):
            for case in make():
                line = case.measure()
                lines.append(line)
                other = f"{line.torch_us:9.1f}" if line.torch_us else ""
                print(f"{line.name:18s} {line.tokens:6d} {line.us:9.1f} {line.floor_us:8.1f} {line.ratio:6.2f} {other}",
                      flush=True)  # fmt: skip
            torch.cuda.empty_cache()
    card = torch.cuda.get_device_name()
    print(json.dumps({"card": card, "torch": torch.__version__, "early": arguments.early,
                      "lines": [asdict(line) for line in lines]}))  # fmt: skip


if __name__ == "__main__":
    with torch.inference_mode():
        main()
