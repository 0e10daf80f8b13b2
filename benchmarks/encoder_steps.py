"""The vision encoders with their large products in bfloat16 and in FP8; `engine_steps.py encoders` runs it.

Prints a JSON object for each finding, and goes on where a part fails:

- `ceilings`: a large product in either type, and so the floor of encoding a page;
- `products`: each product of a layer with what goes before it, as the encoders run them, and kernels' sizes;
- `views`: pages of A4 and views of 640 px a second, in both forms by turns, and one view from a captured graph;
- `profile`: the kernels that encoding consists of;
- `features`: what FP8 changes in features, and in the log probabilities that follow, with random weights;
- `nano`: the same for nano and the truth of the included samples, and what it reads in them;
- `ocr2`: `views` with the dimensions of DeepSeek-OCR-2.

On a CPU everything is tiny and emulated, to try the program.
"""

from __future__ import annotations

import copy
import gc
import json
import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.exactness import figures
from benchmarks.floors import measure_ceilings, view_flops
from benchmarks.kernel_speed import time_us
from benchmarks.random_model import (
    NO_LOOPS,
    PAGE,
    StubTokenizer,
    random_model,
    random_ocr2_checkpoint,
    tiny_config,
)
from benchmarks.reading import prepared, shipped_samples, texts_in_company, true_pages
from service.engine.config import EngineLimits
from service.engine.factory import make_engine
from service.engine.kernels.fp8_rows import Fp8Rows, to_fp8
from service.engine.kernels.reference import vision as reference
from service.engine.vision.runner import CHUNK_PATCHES, GpuVision
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from trainer.evaluation.samples import open_page

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
ON_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if ON_CUDA else "cpu"
DTYPE = torch.bfloat16 if ON_CUDA else torch.float32
EPS = 1e-6
LONGEST_S = 135.0
"""A part that would begin later is left out."""
PAGES, ROUNDS = (80, 4) if ON_CUDA else (2, 2)
"""80 pages of A4 fill their chunks of views to the last."""
ENCODERS = {
    "sam": (CHUNK_PATCHES, 768, 3 * 768, 3072, "gelu"),
    "clip": (16 * 257, 1024, 3 * 1024, 4096, "quick_gelu"),
    "queries": (16 * 512, 896, 896 + 2 * 128, 4864, "gated"),
} if ON_CUDA else {"tiny": (64, 32, 96, 64, "gelu"), "tiny gates": (64, 32, 64, 64, "gated")}  # fmt: skip
"""Tokens of a chunk of views of 1024 px, channels, outputs of queries, keys and values, the MLP's width and kind."""
MLP_ROWS = (4096, 8192, 16_384)
NORM_SIZES = ((1, 2), (1, 4), (2, 4), (4, 4), (8, 4), (4, 8), (8, 8))
ACTIVATION_SIZES = ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8), (4, 8))
"""Rows and warps of a program."""


def say(part: str, **row: Any) -> None:
    """Print a finding; numbers to four digits."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
    print(json.dumps({"part": part} | rounded), flush=True)


def wait() -> None:
    """Until the device is idle."""
    if ON_CUDA:
        torch.cuda.synchronize()


def noise(*shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers on the device."""
    return (torch.randn(shape, device=DEVICE) * scale).to(DTYPE)


def us(work: Callable[[], object]) -> float:
    """Microseconds of a call, from a graph of several."""
    if ON_CUDA:
        return time_us(lambda _: work(), 1)
    began_s = time.perf_counter()
    work()
    return (time.perf_counter() - began_s) * 1e6


@cache
def kernels() -> ModuleType:
    """The set that the encoders use on this device."""
    if not ON_CUDA:
        return reference
    from service.engine.kernels.triton import vision

    return vision


def ceilings() -> None:
    """What products of 8192 x 8192 reach, and how many pages of A4 a second that would be."""
    config = random_config()
    plan = plan_views(*PAGE, config.geometry_config().default_mode, config.geometry_config())
    flops = view_flops(config, plan.global_px) + plan.num_tiles * view_flops(config, plan.tile_px)
    side = 8192 if ON_CUDA else 256
    rates = {"bf16": measure_ceilings(DEVICE, DTYPE).matmul_flops_per_s}
    x = to_fp8(noise(side, side))
    rates["fp8"] = 2 * side**3 / us(lambda: kernels().linear_fp8(x, x, None, DTYPE)) * 1e6
    for name, rate in rates.items():
        say("ceilings", type=name, tflops=rate / 1e12, page_tflop=flops / 1e12, floor_pages_per_s=rate / flops)


def products() -> None:
    """Time the products of a layer, and what they need before and after."""
    for encoder in ENCODERS:
        for measure in (products_of, mlp_in_pieces):
            try:
                measure(encoder)
            except Exception as error:  # noqa: BLE001 - the others are still worth knowing
                say("products", encoder=encoder, error=f"{type(error).__name__}: {error}")
    if ON_CUDA:
        sizes()


def products_of(encoder: str) -> None:
    """Each product on its own. A product that adds does so in bfloat16; in FP8 the next norm adds."""
    tokens, channels, joined, inner, kind = ENCODERS[encoder]
    fused, x = kernels(), noise(tokens, channels)
    weight, bias = noise(channels), noise(channels)
    is_gated = kind == "gated"
    if is_gated:
        norm_us = us(lambda: fused.rms_norm(x, weight, EPS))
        norm_fp8_us = us(lambda: fused.rms_norm_fp8(x, None, weight, EPS))
        adding_us = us(lambda: fused.rms_norm_fp8(x, x, weight, EPS))
    else:
        norm_us = us(lambda: fused.layer_norm(x, None, weight, bias, EPS))
        norm_fp8_us = us(lambda: fused.layer_norm_fp8(x, None, None, weight, bias, EPS))
        adding_us = us(lambda: fused.layer_norm_fp8(x, x, None, weight, bias, EPS))
    say("products", encoder=encoder, product="norm", tokens=tokens, channels=channels, bf16_us=norm_us,
        fp8_us=norm_fp8_us, fp8_adding_us=adding_us)  # fmt: skip
    x = noise(tokens, channels)

    def row(product: str, inputs: Tensor, outputs: int, plain: Callable[[Tensor, Tensor], object], **more: Any) -> None:
        full = noise(outputs, inputs.shape[1], scale=0.02)
        rows, short = to_fp8(full), to_fp8(inputs)
        bias = noise(outputs) if product == "qkv" else None
        emulated = reference.linear_fp8(Fp8Rows(short.values[:64], short.scale[:64]), rows, bias, DTYPE).double()
        found = fused.linear_fp8(short, rows, bias, DTYPE)[:64].double()
        flops = 2 * len(inputs) * full.numel()
        plain_us = us(lambda: plain(inputs, full))
        fp8_us = us(lambda: fused.linear_fp8(short, rows, bias, DTYPE))
        say("products", encoder=encoder, product=product, tokens=len(inputs), inner=inputs.shape[1], outputs=outputs,
            bf16_us=plain_us, fp8_us=fp8_us, bf16_tflops=flops / plain_us / 1e6, fp8_tflops=flops / fp8_us / 1e6,
            error_of_emulated=((found - emulated).norm() / emulated.norm()).item(), **more)  # fmt: skip

    qkv_bias, up_bias, stream = noise(joined), noise(inner), noise(tokens, channels, scale=1e-3)
    row("qkv", x, joined, lambda a, w: torch.addmm(qkv_bias, a, w.t()))
    row("out", x, channels, lambda a, w: stream.addmm_(a, w.t(), beta=0.5), note="stays bf16; 8 bits would need a pass")
    wide = noise(tokens, 2 * inner if is_gated else inner)
    activate, biases = getattr(fused, f"{kind}_fp8"), () if is_gated else (up_bias,)
    activation_us = us(lambda: activate(wide, *biases))

    def up(a: Tensor, w: Tensor) -> Any:
        return fused.gated(a @ w.t(), 1) if is_gated else getattr(fused, f"linear_{kind}")(a, w, up_bias)

    row("up", x, wide.shape[1], up, bf16_includes="activation", fp8_activation_us=activation_us)
    row("down", noise(tokens, inner), channels, lambda a, w: stream.addmm_(a, w.t(), beta=0.5))


def mlp_in_pieces(encoder: str) -> None:
    """Up, activation and down of some tokens at a time, so that what lies between stays in the card's cache."""
    tokens, channels, _, inner, kind = ENCODERS[encoder]
    fused, is_gated = kernels(), kind == "gated"
    x = to_fp8(noise(tokens, channels))
    up = to_fp8(noise(2 * inner if is_gated else inner, channels, scale=0.02))
    down, bias = to_fp8(noise(channels, inner, scale=0.02)), noise(inner)
    out = noise(tokens, channels)

    def mlp(rows: int) -> None:
        for first in range(0, tokens, rows):
            part = Fp8Rows(x.values[first : first + rows], x.scale[first : first + rows])
            wide = fused.linear_fp8(part, up, None, DTYPE)
            hidden = fused.gated_fp8(wide) if is_gated else getattr(fused, f"{kind}_fp8")(wide, bias)
            product = fused.linear_fp8(hidden, down, None, DTYPE)
            if rows < tokens:
                out[first : first + rows].copy_(product)

    for rows in (tokens, *(rows for rows in MLP_ROWS if rows < tokens)):
        say("products", encoder=encoder, product="mlp in pieces", rows=rows, fp8_us=us(partial(mlp, rows)))


def sizes() -> None:
    """Rows and warps of the kernels that write 8 bits, at SAM's dimensions."""
    from service.engine.kernels.triton import vision_fp8

    tokens, channels, _, inner, _ = ENCODERS["sam"]
    x, weight, wide, bias = noise(tokens, channels), noise(channels), noise(tokens, inner), noise(inner)
    works: dict[str, tuple[tuple[tuple[int, int], ...], Callable[[], object]]] = {
        "NORM": (NORM_SIZES, lambda: vision_fp8.layer_norm_fp8(x, x, None, weight, weight, EPS)),
        "ACTIVATION": (ACTIVATION_SIZES, lambda: vision_fp8.gelu_fp8(wide, bias)),
    }
    for name, (choices, work) in works.items():
        for rows, warps in choices:
            chosen: dict[str, Any] = {f"{name}_ROWS": rows, f"{name}_WARPS": warps}
            with patch.multiple(vision_fp8, **chosen):
                say("products", kernel=name, rows=rows, warps=warps, us=us(work))


@cache
def random_config() -> DeepseekOcrConfig:
    """The public dimensions, or tiny ones on a CPU."""
    config = DeepseekOcrConfig() if ON_CUDA else tiny_config()
    if not ON_CUDA:
        config.image_token_id = 3  # of nano's vocabulary
    return config


@cache
def random_v1() -> Any:
    """The model, made once."""
    return random_model(DEVICE, DTYPE, random_config())


def both(model: Any) -> dict[str, GpuVision]:
    """Its encoders in both forms, without graphs."""
    return {name: GpuVision(model, graphs=False, is_fp8=name == "fp8") for name in ("bf16", "fp8")}


def noise_views(side_px: int, count: int) -> list[Tensor]:
    """Views on the device, eight of them different."""
    different = torch.randint(0, 256, (8, side_px, side_px, 3), dtype=torch.uint8, device=DEVICE).unbind(0)
    return [different[index % 8] for index in range(count)]


def measure_views(part: str, model: Any, geometry: GeometryConfig) -> None:
    """Encode pages and views, both forms by turns."""
    encoders = both(model)
    plan = plan_views(*PAGE, geometry.default_mode, geometry)
    cases = {
        "A4 pages": (PAGES, noise_views(plan.global_px, PAGES) + noise_views(plan.tile_px, PAGES * plan.num_tiles)),
        f"views of {plan.tile_px} px": (5 * PAGES, noise_views(plan.tile_px, 5 * PAGES)),
    }
    for case, (count, views) in cases.items():
        seconds: dict[str, list[float]] = {name: [] for name in encoders}
        for turn in range(ROUNDS + 1):
            for name, encoder in encoders.items():
                wait()
                began_s = time.perf_counter()
                encoder.encode(views)
                wait()
                if turn:  # the first compiles
                    seconds[name].append(time.perf_counter() - began_s)
        rates = {name: [count / each for each in taken] for name, taken in seconds.items()}
        ratio = statistics.median(seconds["bf16"]) / statistics.median(seconds["fp8"])
        for name, rate in rates.items():
            say(part, case=case, form=name, per_s=statistics.median(rate), least=min(rate), most=max(rate))
        say(part, case=case, fp8_times_as_fast=ratio)
    for side_px in (plan.global_px, plan.tile_px):
        batch = torch.stack(noise_views(side_px, 1))
        for name, encoder in encoders.items():
            say(part, case=f"1 view of {side_px} px", form=name, us=us(partial(encoder._encode_batch, batch)))


def views() -> None:
    """The first model's."""
    measure_views("views", random_v1(), random_config().geometry_config())


def profile() -> None:
    """Kernels of a chunk of views of 1024 px and one of 640 px."""
    from torch.profiler import ProfilerActivity

    if not ON_CUDA:
        return
    for name, encoder in both(random_v1()).items():
        for side_px, count in ((1024, 16), (640, 40)):
            batch = noise_views(side_px, count)
            encoder.encode(batch)
            wait()
            with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
                encoder.encode(batch)
                wait()
            events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
            total_us = sum(event.self_device_time_total for event in events)
            say("profile", form=name, side_px=side_px, views=count, total_ms=total_us / 1000)
            for event in events[:14]:
                say("profile", form=name, side_px=side_px, ms=event.self_device_time_total / 1000, count=event.count,
                    share=event.self_device_time_total / total_us, kernel=event.key[:110])  # fmt: skip


@torch.inference_mode()
def log_probabilities(checkpoint: LoadedCheckpoint, page: PageViews, encoder: GpuVision, ids: Sequence[int]) -> Tensor:
    """Of every token at the place of each of these ids, which follow the prompt: `[ids, vocabulary]`."""
    model, plan = checkpoint.model, page.plan
    global_ND, *tiles = encoder.encode([page.global_view_HWC, *page.tiles_THWC])
    tiles_TND = torch.stack(tiles) if tiles else None
    features_LD = model.assemble_page(global_ND, tiles_TND, plan.tile_columns, plan.tile_rows)
    prompt = checkpoint.tokenizer.encode_prompt(plan, prompt_for(Task.FREE))
    sequence_BL = torch.tensor([[*prompt, *ids]], device=DEVICE)
    positions_BL = torch.arange(sequence_BL.shape[1], device=DEVICE).unsqueeze(0)
    hidden_BLD, _ = model.decode(model.embed_inputs(sequence_BL, [features_LD]), positions_BL)
    places = slice(len(prompt) - 1, sequence_BL.shape[1] - 1)
    logits: Tensor = model.lm_head(hidden_BLD[0, places]).float()
    return logits.log_softmax(dim=-1)


class _InType:
    """Exact encoders whose features are rounded to the type of the decoder that reads them."""

    def __init__(self, encoder: GpuVision) -> None:
        self._encoder = encoder

    def encode(self, views: Sequence[Any]) -> list[Tensor]:
        """As `GpuVision.encode`."""
        return [tokens_ND.to(DTYPE) for tokens_ND in self._encoder.encode(views)]


def forms_of(model: Any) -> dict[str, Any]:
    """Encoders in float32, in bfloat16, in FP8, and on a GPU in FP8 as plain torch emulates it."""
    # Torch rounds convolutions' inputs unless told otherwise.
    torch.backends.cudnn.allow_tf32 = False
    exact = GpuVision(copy.deepcopy(model).float(), kernels=reference, graphs=False)
    emulated = {"fp8 emulated": GpuVision(model, kernels=reference, graphs=False, is_fp8=True)} if ON_CUDA else {}
    return {"exact": _InType(exact)} | both(model) | emulated


def compare(
    part: str, forms: dict[str, Any], checkpoint: LoadedCheckpoint, page: PageViews, ids: Sequence[int], **row: Any
) -> None:
    """How features differ from exact ones, and the log probabilities that the same decoder makes of them."""
    views = [page.global_view_HWC, *page.tiles_THWC]
    features = {name: torch.cat([each.double() for each in form.encode(views)]) for name, form in forms.items()}
    found = {name: log_probabilities(checkpoint, page, form, ids) for name, form in forms.items()}
    truth, index = found["exact"], torch.tensor([*ids], device=DEVICE).unsqueeze(1)
    for name in [name for name in forms if name != "exact"]:
        off = (features[name] - features["exact"]).norm() / features["exact"].norm()
        away, here = found[name] - truth, (found[name].gather(1, index) - truth.gather(1, index)).abs()
        kl = (truth.exp() * -away).sum(dim=1)
        say(part, form=name, **row, features_error=off.item(), log_prob_most=away.abs().max().item(),
            log_prob_of_ids_mean=here.mean().item(), log_prob_of_ids_most=here.max().item(), kl_mean=kl.mean().item(),
            same_choice=(found[name].argmax(1) == truth.argmax(1)).float().mean().item(), ids=len(ids))  # fmt: skip


def features() -> None:
    """Compare with random weights of the public dimensions, on the included samples as that model sees them."""
    config = random_config()
    checkpoint = LoadedCheckpoint(
        random_v1(), StubTokenizer(config.image_token_id), config.geometry_config(), "deepseek-ocr-random"
    )
    ids = [random.Random(0).randrange(10, 200) for _ in range(128)]
    forms = forms_of(checkpoint.model)
    for sample in shipped_samples():
        page = prepared(open_page(sample.image_path), checkpoint.geometry)
        compare("features", forms, checkpoint, page, ids, model="v1 random", sample=sample.name)


def nano() -> None:
    """What nano reads, and how probable it finds the truth. All its dimensions are multiples of 16, as v1's."""
    checkpoint = load_checkpoint(NANO, DEVICE, DTYPE)
    forms = forms_of(checkpoint.model)
    for sample in shipped_samples():
        page = prepared(open_page(sample.image_path), checkpoint.geometry)
        ids = checkpoint.tokenizer.encode_plain(sample.truth)[:512]
        compare("nano", forms, checkpoint, page, ids, sample=sample.name)
    if not ON_CUDA:
        return
    pages = true_pages(None, checkpoint.geometry)
    texts: dict[str, list[str]] = {}
    for name in ("bf16", "fp8"):
        limits = EngineLimits(
            batch_size=4,
            max_new_tokens=2048,
            loop_rule=NO_LOOPS,
            gpu_memory_fraction=0.5,
            cuda_graphs=False,
            encodes_in_fp8=name == "fp8",
        )
        engine = make_engine(load_checkpoint(NANO, DEVICE, DTYPE), limits)
        engine.warm_up()
        texts[name] = texts_in_company(engine, [page.page for page in pages], 2048, random.Random(0))
        del engine
        free()
    found = figures(pages, texts["bf16"], texts["fp8"])
    say("nano", engine="whole", **found, note="reference_cer is bf16's, engine_cer FP8's")


def ocr2() -> None:
    """The second model's."""
    checkpoint = random_ocr2_checkpoint(DEVICE, DTYPE)
    measure_views("ocr2", checkpoint.model, checkpoint.geometry)


def free() -> None:
    """Give memory back."""
    gc.collect()
    if ON_CUDA:
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[], None]] = {
    "ceilings": ceilings,
    "products": products,
    "views": views,
    "profile": profile,
    "features": features,
    "nano": nano,
    "ocr2": ocr2,
}


@torch.inference_mode()
def run(names: Sequence[str] = ()) -> Iterator[str]:
    """Run parts one after another.

    Args:
        names: Which; none: all.

    Yields:
        The name of each part that failed or was left out.
    """
    torch.manual_seed(0)
    began_s = time.perf_counter()
    for name in names or PARTS:
        part_s = time.perf_counter()
        if part_s - began_s > LONGEST_S:
            say(name, left_out=f"{part_s - began_s:.0f} s have passed")
            yield name
            continue
        try:
            PARTS[name]()
        except Exception as error:  # noqa: BLE001 - the other parts are still worth knowing
            traceback.print_exc()
            say(name, error=f"{type(error).__name__}: {error}"[:500])
            yield name
        free()
        say(name, took_s=time.perf_counter() - part_s)
