"""Times of the vision encoder's kernels one by one, with the ways of cutting them side by side. Needs a GPU.

python benchmarks/vision_kernels.py [grid64] [grid40] [window64] [window40] [linear] [products]
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F
from triton.testing import do_bench

from service.engine.kernels.reference import vision as vision_reference
from service.engine.kernels.triton import vision_attention, vision_linear

HEADS, HEAD, CHANNELS = 12, 64, 768
TOKENS = 65_536


def noise(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers in bf16."""
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def report(name: str, run: Callable[[], object], flops: float = 0, moved: float = 0) -> None:
    """Print the median time, with TFLOP/s or TB/s; a way that does not compile is reported and skipped."""
    try:
        ms = do_bench(run, warmup=10, rep=60, return_mode="median")
    except Exception as error:  # noqa: BLE001 - a tuning run goes on whatever one configuration does
        reason = (str(error).strip() or traceback.format_exc()).splitlines()[-1][:100]
        print(f"{name:<64} {type(error).__name__}: {reason}", flush=True)
        return
    rates = f"{flops / ms / 1e9:>7.0f} TFLOP/s" if flops else f"{moved / ms / 1e9:>7.2f} TB/s"
    print(f"{name:<64} {ms:>8.3f} ms {rates}", flush=True)


def grid(side: int, views: int) -> None:
    """Attention over whole views."""
    qkv = noise(views, side, side, 3 * CHANNELS)
    rows, columns = noise(2 * side - 1, HEAD, scale=0.2), noise(2 * side - 1, HEAD, scale=0.2)
    flops = 4 * views * side**4 * CHANNELS
    truth = vision_reference.grid_attention(qkv[:1].float(), rows.float(), columns.float(), HEADS)
    flat = qkv.view(views, side * side, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
    report(f"grid {side}: plain flash attention without bias", lambda: F.scaled_dot_product_attention(*flat), flops)
    default = vision_attention.grid_tiling(side)
    for queries, keys, warps, stages in (
        (64, 64, 4, 3),
        (64, 64, 4, 4),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
        (64, 128, 4, 3),
        (128, 128, 8, 3),
    ):
        tiling = replace(default, queries=queries, keys=keys, rows=keys // side, warps=warps, stages=stages)
        name = f"grid {side} x {views}: {tiling}".replace("GridTiling", "")
        report(name, partial(vision_attention.grid_attention, qkv, rows, columns, HEADS, tiling), flops)
    error = (vision_attention.grid_attention(qkv, rows, columns, HEADS)[:1].float() - truth).norm() / truth.norm()
    print(f"grid {side}: relative error {float(error):.2e}")


def window(side: int, views: int) -> None:
    """Attention within windows of 14."""
    qkv, bias = noise(views, side, side, 3 * CHANNELS), noise(3 * CHANNELS)
    rows, columns = noise(27, HEAD, scale=0.2), noise(27, HEAD, scale=0.2)
    flops = 4 * views * side**2 * 14**2 * CHANNELS
    for queries, warps in ((64, 4), (128, 8), (128, 4), (64, 8)):
        vision_attention.WINDOW_QUERIES, vision_attention.WINDOW_WARPS = queries, warps
        run = partial(vision_attention.window_attention, qkv, bias, rows, columns, HEADS, 14)
        report(f"window, view {side} x {views}: {queries} queries, {warps} warps", run, flops)


def linear() -> None:
    """The MLPs' first product with its activation."""
    activated_product(TOKENS, 768, 3072, quick=False)
    activated_product(1600, 768, 3072, quick=False)
    activated_product(16 * 257, 1024, 4096, quick=True)


def activated_product(tokens: int, inner: int, outer: int, *, quick: bool) -> None:
    """One product with its activation."""
    x, weight, bias = noise(tokens, inner), noise(outer, inner, scale=0.03), noise(outer)
    name, flops = f"{tokens} x {inner} -> {outer}", 2 * tokens * inner * outer
    report(f"{name}: addmm alone", lambda: torch.addmm(bias, x, weight.t()), flops)
    function = vision_linear.linear_quick_gelu if quick else vision_linear.linear_gelu
    report(f"{name}: with its activation", partial(function, x, weight, bias), flops)


def products() -> None:
    """The other products, as cuBLAS does them."""
    for tokens in (TOKENS, 1600):
        for inner, outer in ((768, 2304), (768, 768), (3072, 768)):
            x, weight, stream = noise(tokens, inner), noise(outer, inner, scale=0.03), noise(tokens, outer)
            bias, flops, name = noise(outer), 2 * tokens * inner * outer, f"{tokens} x {inner} -> {outer}"
            report(f"{name}: with bias", partial(torch.addmm, bias, x, weight.t()), flops)
            report(f"{name}: into the stream", partial(stream.addmm_, x, weight.t()), flops)


PARTS: dict[str, Callable[[], None]] = {
    "grid64": lambda: grid(64, 4),
    "grid40": lambda: grid(40, 8),
    "window64": lambda: window(64, 8),
    "window40": lambda: window(40, 16),
    "linear": linear,
    "products": products,
}


def main() -> None:
    """Measure the parts that are named, or all of them."""
    torch.manual_seed(0)
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
