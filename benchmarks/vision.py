"""What encoding views costs on a GPU: the engine's path, the model's own modules, and the modules compiled.

Random weights of the public dimensions, bf16, views as 8-bit pixels on the host, uploads included. SMALL is a view of
640 px, PAGE six views of 640 px and one of 1024 px. Prints a table per variant and one JSON line last.

    python benchmarks/vision.py [--variants engine,modules,compiled] [--profile] [--check]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from service.engine.vision.runner import GpuVision
from shared.deepseek_ocr.configuration import DeepseekOcrConfig, TextConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration

PAGES = {"SMALL": (640,), "PAGE": (1024, *[640] * 6)}
CASES = [("SMALL", 1), ("SMALL", 8), ("SMALL", 32), ("PAGE", 1), ("PAGE", 4), ("PAGE", 16)]
FLOOR_TFLOPS = 500
"""Arithmetic that a floor assumes, as in the measurements of the peers."""

Encode = Callable[[Sequence[np.ndarray]], object]


def public_model(dtype: torch.dtype = torch.bfloat16) -> DeepseekOcrForConditionalGeneration:
    """Public vision dimensions over a decoder of one small layer."""
    torch.manual_seed(0)
    text = TextConfig(vocab_size=64, num_hidden_layers=1, intermediate_size=64)
    with torch.device("cuda"):
        model = DeepseekOcrForConditionalGeneration(DeepseekOcrConfig(text_config=text))
        # The initial biases are zeros and hide mistakes.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.1)
            elif "rel_pos" in name:
                parameter.data.normal_(std=0.2)
    return model.eval().to(dtype)


def view_flops(side_px: int, config: DeepseekOcrConfig) -> int:
    """Multiplications and additions of one view, windows at the edge not filled up."""
    sam, clip = config.sam_config, config.clip_config
    tokens, width = (side_px // sam.patch_size) ** 2, sam.hidden_size
    total = 2 * tokens * 3 * sam.patch_size**2 * width
    for layer in range(sam.num_hidden_layers):
        seen = tokens if layer in sam.global_layers else sam.window_size**2
        total += tokens * (2 * 12 * width**2 + 4 * seen * width)
    first, second = sam.downsample_channels
    total += 2 * tokens * sam.neck_channels * (width + 9 * sam.neck_channels)
    total += 2 * (tokens // 4) * 9 * sam.neck_channels * first + 2 * (tokens // 16) * 9 * first * second
    count = tokens // 16 + 1
    total += clip.num_hidden_layers * count * (2 * 12 * clip.hidden_size**2 + 4 * count * clip.hidden_size)
    return total + 2 * count * 2 * clip.hidden_size * config.text_config.hidden_size


def modules_encode(model: DeepseekOcrForConditionalGeneration, chunk_patches: int = 65_536) -> Encode:
    """The model's own modules, views of one size together, as the engine did before it had `GpuVision`."""

    @torch.inference_mode()
    def encode(views: Sequence[np.ndarray]) -> list[Tensor]:
        done = []
        for side in sorted({view.shape[0] for view in views}):
            group = [view for view in views if view.shape[0] == side]
            chunk = chunk_patches // (side // 16) ** 2
            for first in range(0, len(group), chunk):
                stacked = torch.from_numpy(np.stack(group[first : first + chunk]))
                done.append(model.encode_views(stacked.to("cuda")))
        return done

    return encode


def compiled_encode(model: DeepseekOcrForConditionalGeneration) -> Encode:
    """The modules with every transformer block compiled by Inductor, shapes dynamic."""
    for block in model.model.sam_model.blocks:
        block.forward = torch.compile(block.forward, dynamic=True)
    for layer in model.model.vision_model.transformer.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return modules_encode(model)


def make_variant(name: str) -> tuple[Encode, float]:
    """An encoder and the seconds until it has encoded each size once."""
    model = public_model()
    torch.cuda.synchronize()
    started = time.perf_counter()
    encode: Encode
    if name == "engine":
        vision = GpuVision(model)
        vision.warm_up([1024, 640])
        encode = vision.encode
    elif name == "nographs":
        encode = GpuVision(model, graphs=False).encode
    else:
        encode = compiled_encode(model) if name == "compiled" else modules_encode(model)
    encode(views_of("PAGE", 1))
    encode(views_of("PAGE", 2))
    torch.cuda.synchronize()
    return encode, time.perf_counter() - started


def views_of(page: str, count: int) -> list[np.ndarray]:
    """Noise as pixels."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count) for side in PAGES[page]]


def measure(encode: Encode, views: Sequence[np.ndarray], seconds: float = 1.5) -> tuple[float, float]:
    """Median milliseconds from the call to the last result, and of the call itself."""
    for _ in range(2):
        encode(views)
    torch.cuda.synchronize()
    walls: list[float] = []
    calls: list[float] = []
    end = time.perf_counter() + seconds
    while len(walls) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        result = encode(views)
        calls.append(time.perf_counter() - started)
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - started)
        del result
    return statistics.median(walls) * 1e3, statistics.median(calls) * 1e3


def print_profile(encode: Encode, page: str, count: int) -> None:
    """Kernels by their share of the device's time."""
    views = views_of(page, count)
    encode(views)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        encode(views)
        torch.cuda.synchronize()
    kernels = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    kernels = [event for event in kernels if "cuda" in str(event.device_type).lower()]
    total = sum(event.self_device_time_total for event in kernels)
    print(f"profile of {count} x {page}: {total / 1e3:.2f} ms in kernels")
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:18]:
        share = event.self_device_time_total / total
        print(f"{share:>6.1%} {event.self_device_time_total / 1e3:>8.2f} ms {event.count:>5}x  {event.key[:90]}")


@torch.inference_mode()
def check() -> None:
    """Compare bf16 with float32 modules of the same weights, and graphs with single launches."""
    started = time.perf_counter()
    exact, near = public_model(torch.float32), public_model()
    exact.load_state_dict(near.state_dict())
    plain, captured = GpuVision(near, graphs=False), GpuVision(near)
    torch.cuda.synchronize()
    print(f"models after {time.perf_counter() - started:.1f} s", flush=True)
    captured.warm_up([640, 1024])
    print(f"warm after {time.perf_counter() - started:.1f} s", flush=True)
    for side_px, count in ((640, 1), (640, 7), (1024, 2), (512, 1), (1280, 1)):
        random = np.random.default_rng(side_px)
        views = [random.integers(0, 256, (side_px, side_px, 3), np.uint8) for _ in range(count)]
        stacked = torch.from_numpy(np.stack(views)).cuda()
        truth = torch.cat([exact.encode_views(view.unsqueeze(0)) for view in stacked])
        found = {
            "modules": near.encode_views(stacked),
            "engine": torch.stack(plain.encode(views)),
            "graphs": torch.stack(captured.encode(views)),
        }
        errors = {name: float((out.float() - truth).norm() / truth.norm()) for name, out in found.items()}
        print(
            f"{count} x {side_px} px, relative error:",
            {name: f"{error:.2e}" for name, error in errors.items()},
            flush=True,
        )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="engine,modules", help="of engine, nographs, modules, compiled")
    parser.add_argument("--profile", action="store_true", help="list kernels of one SMALL and of 4 PAGE")
    parser.add_argument("--check", action="store_true", help="compare with float32 instead of timing")
    parser.add_argument("--seconds", type=float, default=1.5, help="time of one case")
    arguments = parser.parse_args()
    if arguments.check:
        check()
        return
    config = DeepseekOcrConfig()
    rows = []
    for variant in arguments.variants.split(","):
        encode, ready_s = make_variant(variant)
        print(f"{variant}: ready after {ready_s:.1f} s")
        print(
            f"{'case':<6} {'n':>3} {'ms':>8} {'host ms':>8} {'ms/page':>8} {'views/s':>8} {'TFLOP/s':>8} {'floor':>6}"
        )
        for page, count in CASES:
            views = views_of(page, count)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            wall_ms, call_ms = measure(encode, views, arguments.seconds)
            tflop = count * sum(view_flops(side, config) for side in PAGES[page]) / 1e12
            row = {
                "variant": variant,
                "case": page,
                "pages": count,
                "ms": round(wall_ms, 3),
                "host_ms": round(call_ms, 3),
                "ms_per_page": round(wall_ms / count, 3),
                "views_per_s": round(len(views) / wall_ms * 1e3, 1),
                "tflops": round(tflop / wall_ms * 1e3, 1),
                "floor_share": round(tflop / FLOOR_TFLOPS * 1e3 / wall_ms, 3),
                "scratch_gib": round((torch.cuda.max_memory_allocated() - before) / 2**30, 2),
            }
            rows.append(row)
            print(
                f"{page:<6} {count:>3} {wall_ms:>8.2f} {call_ms:>8.2f} {row['ms_per_page']:>8.2f}"
                f" {row['views_per_s']:>8} {row['tflops']:>8} {row['floor_share']:>6.0%}  {row['scratch_gib']} GiB",
                flush=True,
            )
        if arguments.profile:
            print_profile(encode, "SMALL", 1)
            print_profile(encode, "PAGE", 4)
        del encode
        torch.cuda.empty_cache()
    summary = {"benchmark": "vision", "torch": torch.__version__, "device": torch.cuda.get_device_name(), "rows": rows}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
