"""The least time that a device needs for a case: arithmetic from the model's dimensions, ceilings from the device.

A floor counts what no implementation can avoid: matrix products and attention of encoders and prefill at the device's
rate of matrix products, and for a decode step the bytes that must be read at least once. Image preparation, norms,
routing, the attention's relative positions, padding and launches are left out. A prompt's head is counted for its last
token only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.preparation import plan_of
from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig

COPY_BYTES = 1 << 30
MATMUL_SIDE = 8192
CPU_COPY_BYTES = 1 << 26
CPU_MATMUL_SIDE = 1024
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device reached in the same run as the figures it is compared with."""

    copy_bytes_per_s: float
    """Bytes read plus bytes written by a copy within the device's memory."""
    matmul_flops_per_s: float
    """Of a large square product in the model's type; a multiply-add counts two."""
    bytes_per_weight: int = 2
    """Of the model's type."""

    def as_row(self) -> dict[str, float]:
        """Rounded, by name."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Decoding:
    """What decoding takes, by the decoder's dimensions."""

    text: TextConfig
    bytes_per_weight: int

    @property
    def attention_weights(self) -> int:
        """Of all layers."""
        return self.text.num_hidden_layers * 4 * self.text.hidden_size**2

    @property
    def dense_weights(self) -> int:
        """Of the layers without experts."""
        return self.text.first_k_dense_replace * 3 * self.text.hidden_size * self.text.intermediate_size

    @property
    def expert_weights(self) -> int:
        """Of one expert of one layer."""
        return 3 * self.text.hidden_size * self.text.moe_intermediate_size

    @property
    def mixture_layers(self) -> int:
        """Layers with experts."""
        return self.text.num_hidden_layers - self.text.first_k_dense_replace

    @property
    def head_weights(self) -> int:
        """Of the product that gives the logits."""
        return self.text.vocab_size * self.text.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token, all layers."""
        return 2 * self.text.num_hidden_layers * self.text.hidden_size * self.bytes_per_weight

    def weights_touched(self, tokens: float) -> float:
        """Weights that so many tokens read together, with routing spread evenly over the experts; without the head."""
        text = self.text
        missed = (1 - text.num_experts_per_tok / text.n_routed_experts) ** tokens
        experts = text.n_routed_experts * (1 - missed) + text.n_shared_experts
        router = text.n_routed_experts * text.hidden_size
        mixture = self.mixture_layers * (experts * self.expert_weights + router)
        return self.attention_weights + self.dense_weights + mixture

    def flops_per_token(self) -> float:
        """Of the layers' weights, without attention's own products and without the head."""
        return 2 * self.weights_touched(1)

    def step_s(self, rows: int, length: float, ceilings: Ceilings) -> float:
        """One token for each of some rows with `length` tokens on average."""
        weights = self.weights_touched(rows) + self.head_weights
        moved = weights * self.bytes_per_weight + rows * length * self.kv_bytes_per_token
        attention = 4 * length * self.text.hidden_size * self.text.num_hidden_layers
        flops = rows * (self.flops_per_token() + 2 * self.head_weights + attention)
        return max(moved / ceilings.copy_bytes_per_s, flops / ceilings.matmul_flops_per_s)

    def prefill_s(self, rows: int, tokens: int, ceilings: Ceilings) -> float:
        """Prompts of so many tokens, read together."""
        text = self.text
        moved = (self.weights_touched(rows * tokens) + self.head_weights) * self.bytes_per_weight
        # Causal: on average a token sees half of its prompt.
        attention = 2 * tokens * text.hidden_size * text.num_hidden_layers
        flops = rows * (tokens * (self.flops_per_token() + attention) + 2 * self.head_weights)
        return max(moved / ceilings.copy_bytes_per_s, flops / ceilings.matmul_flops_per_s)


def view_flops(config: DeepseekOcrConfig, side_px: int) -> float:
    """Arithmetic of encoding one view."""
    patches = (side_px // config.sam_config.patch_size) ** 2
    tokens = patches // config.sam_config.downsample**2
    projector = 2 * tokens * 2 * config.clip_config.hidden_size * config.text_config.hidden_size
    return _sam_flops(config.sam_config, patches) + _clip_flops(config.clip_config, tokens + 1) + projector


def floor_s(config: DeepseekOcrConfig, case: Case, batch_size: int, ceilings: Ceilings) -> float:
    """Least seconds for a case on an engine that decodes `batch_size` rows together."""
    plan = plan_of(case.size_px, config.geometry_config())
    decoding = Decoding(config.text_config, ceilings.bytes_per_weight)
    vision = view_flops(config, plan.global_px) + plan.num_tiles * view_flops(config, plan.tile_px)
    seconds = case.requests * vision / ceilings.matmul_flops_per_s
    prompt = plan.num_vision_tokens + 3
    rows = min(case.requests, batch_size)
    batches = case.requests / rows
    seconds += batches * decoding.prefill_s(rows, prompt, ceilings)
    if case.new_tokens > 1:
        mean_length = prompt + case.new_tokens / 2
        seconds += batches * (case.new_tokens - 1) * decoding.step_s(rows, mean_length, ceilings)
    return seconds


def measure_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """Time a copy and a product on a device, the best of a few."""
    on_cpu = torch.device(device).type == "cpu"
    size, side = (CPU_COPY_BYTES, CPU_MATMUL_SIDE) if on_cpu else (COPY_BYTES, MATMUL_SIDE)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    ceilings = Ceilings(
        copy_bytes_per_s=2 * size / _best_s(lambda: target.copy_(source), device),
        matmul_flops_per_s=2 * side**3 / _best_s(lambda: torch.mm(left, right, out=product), device),
        bytes_per_weight=dtype.itemsize,
    )
    if not on_cpu:
        del source, target, left, right, product
        torch.cuda.empty_cache()
    return ceilings


def _best_s(work: Callable[[], Any], device: str) -> float:
    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    best = float("inf")
    for _ in range(REPEATS):
        wait()
        began_s = time.perf_counter()
        for _ in range(REPEATS):
            work()
        wait()
        best = min(best, (time.perf_counter() - began_s) / REPEATS)
    return best


def _sam_flops(sam: SamConfig, patches: int) -> float:
    width, neck = sam.hidden_size, sam.neck_channels
    layers = sam.num_hidden_layers
    linear = layers * patches * width * width * (8 + 4 * sam.mlp_ratio)
    global_layers = len(sam.global_layers)
    seen = global_layers * patches + (layers - global_layers) * min(sam.window_size**2, patches)
    attention = 4 * patches * seen * width
    first, second = sam.downsample_channels
    after_first = patches / sam.downsample_strides[0] ** 2
    after_second = after_first / sam.downsample_strides[1] ** 2
    convolutions = patches * (width * neck + 9 * neck * neck) + 9 * (
        after_first * neck * first + after_second * first * second
    )
    # A stem of small convolutions costs other than one patchify convolution; both are a hundredth of the whole.
    patchify = patches * 3 * sam.patch_size**2 * width
    return linear + attention + 2 * (convolutions + patchify)


def _clip_flops(clip: ClipConfig, tokens: int) -> float:
    linear = tokens * clip.hidden_size * (8 * clip.hidden_size + 4 * clip.intermediate_size)
    return clip.num_hidden_layers * (linear + 4 * tokens * tokens * clip.hidden_size)
