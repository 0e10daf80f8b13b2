"""DeepSeek-OCR-2 in miniature: transformers' own class with random weights, pages for it, and its greedy answers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration, DynamicCache

from service.engine.engine import TorchEngine
from service.engine.lora.files import AdapterFiles
from service.engine.protocol import SamplingParams, SequenceRequest, SequenceResult
from shared.contract.peft_config import parse_config
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import Mode, plan_views
from shared.deepseek_ocr.ocr2 import OCR2_GEOMETRY, DeepseekOcr2Reader
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from shared.deepseek_ocr.vision import normalise_views
from tests.support.adapters import peft_config
from tests.unit.service.engine.tiny import PROMPT, tiny_tokenizer

WIDTH = 32
PAGES = {"no tiles": (700, 500), "two tiles": (1600, 700), "six tiles": (1500, 2200)}
"""Sizes in pixels."""
TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp|mlp\.shared_experts)\.\w+_proj"
"""All modules that an adapter may change, as PEFT takes a pattern."""


class NumberedTokenizer(OcrTokenizer):
    """Shows ids instead of text, so that two answers are equal only if their tokens are."""

    def token_bytes(self, token_id: int) -> bytes:
        return f"[{token_id}]".encode()


def numbered_tokenizer() -> NumberedTokenizer:
    return NumberedTokenizer(tiny_tokenizer()._backend)


def text_of(tokens: Sequence[int]) -> str:
    """What an engine with `numbered_tokenizer` says of an answer, its end left out."""
    return "".join(f"[{token}]" for token in tokens if token != 1)


def tiny_config(patch_px: int = 16, *, is_global: bool = False, **text: object) -> DeepseekOcr2Config:
    """Windows that do not divide a view, key heads shared by query heads, shared experts of two."""
    sam = {
        "patch_size": patch_px,
        "hidden_size": 32,
        "num_hidden_layers": 2 if is_global else 1,
        "num_attention_heads": 2,
        "output_channels": 16,
        "global_attn_indexes": [1] if is_global else [],
        "image_size": 1024,
        "downsample_channels": [24, 32],
        "mlp_dim": 48,
    }
    encoder = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    values = {
        "vocab_size": 268,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "n_group": 1,
        "topk_group": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "max_position_embeddings": 2048,
    }
    return DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder}, text_config=values | text, image_token_id=3
    )


def tiny_ocr2(
    seed: int = 0, patch_px: int = 16, *, is_global: bool = False, **text: object
) -> DeepseekOcr2ForConditionalGeneration:
    """Transformers' model with activations of order one everywhere.

    Args:
        seed: Of the weights.
        patch_px: 16 for pages; 32 makes quick views of fewer tokens than pages are planned with.
        is_global: Whether a layer of the first encoder looks at the whole view, which takes seconds at 16 px.
        **text: Changes of the decoder's configuration.
    """
    torch.manual_seed(seed)
    model = DeepseekOcr2ForConditionalGeneration(tiny_config(patch_px, is_global=is_global, **text)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]
            if "rel_pos" in name:
                parameter.normal_(std=0.2)
            elif "embed" in name or "query_" in name or "view_separator" in name:
                parameter.normal_()
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1:
                parameter.normal_(std=1.5 * fan_in**-0.5)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def reader_of(theirs: DeepseekOcr2ForConditionalGeneration) -> DeepseekOcr2Reader:
    """Our class with copies of the same weights."""
    model = DeepseekOcr2Reader(theirs.config).eval()
    model.load_state_dict(theirs.state_dict())
    return model


def in_type(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A copy with the weights of a bfloat16 file, as `from_pretrained` would load it in a type.

    `model.to(dtype)` would round the frequencies of rotary positions too, and back in float32 they stay rounded: the
    logits of a page with six tiles are then 7 times as far off.
    """
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().to(dtype)
    return model.to(device)


def write_ocr2(folder: Path, theirs: DeepseekOcr2ForConditionalGeneration) -> Path:
    """A checkpoint that the service loads."""
    theirs.save_pretrained(folder)
    tiny_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    return folder


def noise_page(size: str, seed: int) -> PageViews:
    plan = plan_views(*PAGES[size], Mode.GUNDAM, OCR2_GEOMETRY)
    noise = np.random.default_rng(seed)
    return PageViews(
        plan=plan,
        global_view_HWC=noise.integers(0, 256, (plan.global_px, plan.global_px, 3), np.uint8),
        tiles_THWC=noise.integers(0, 256, (plan.num_tiles, plan.tile_px, plan.tile_px, 3), np.uint8),
    )


def their_images(
    page: PageViews, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, object]:
    """Transformers' arguments for a page's image."""

    def pixels(views: np.ndarray) -> Tensor:
        return normalise_views(torch.from_numpy(views).to(device), dtype)

    images: dict[str, object] = {"pixel_values": pixels(page.global_view_HWC[None])}
    if page.plan.num_tiles:
        images |= {"pixel_values_local": pixels(page.tiles_THWC), "num_local_patches": [page.plan.num_tiles]}
    return images


@torch.inference_mode()
def their_logits(model: torch.nn.Module, page: PageViews, ids: Sequence[int], count: int) -> tuple[list[int], Tensor]:
    """Greedy tokens of transformers' `forward` over its own cache, and the logits that they were chosen by."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    cache = DynamicCache()
    inputs: dict[str, object] = {"input_ids": torch.tensor([list(ids)], device=device)} | their_images(
        page, device, dtype
    )
    tokens: list[int] = []
    found = []
    while len(tokens) < count and (not tokens or tokens[-1] != 1):
        logits_V = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        found.append(logits_V)
        tokens.append(int(logits_V.argmax()))
        inputs = {"input_ids": torch.tensor([tokens[-1:]], device=device)}
    return tokens, torch.stack(found)


def lora_of(theirs: DeepseekOcr2ForConditionalGeneration, seed: int, rank: int) -> tuple[AdapterFiles, Any]:
    """An adapter that PEFT made on transformers' class, as its files; and that model with it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, init_lora_weights=False)
    wrapped = get_peft_model(theirs, config).eval()
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    for name, tensor in tensors.items():
        tensor.normal_(std=0.3 if "lora_B" in name else tensor.shape[1] ** -0.5)
    values = peft_config(rank, lora_alpha=2 * rank, target_modules=TARGETS)
    files = AdapterFiles({n: t.clone() for n, t in tensors.items()}, parse_config(json.dumps(values).encode()))
    return files, wrapped.get_base_model()


@torch.inference_mode()
def forced_logits(model: torch.nn.Module, page: PageViews, ids: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Logits of transformers' `forward` by which each of these tokens would be chosen."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    cache = DynamicCache()
    prompt = torch.tensor([list(ids)], device=device)
    first = model(prompt, **their_images(page, device, dtype), past_key_values=cache, use_cache=True, logits_to_keep=1)
    # In a pass of their own, as an answer may have image tokens.
    rest = model(torch.tensor([list(tokens[:-1])], device=device), past_key_values=cache, use_cache=True)
    return torch.cat((first.logits[0], rest.logits[0]))


def engine_logits(
    engine: TorchEngine, pages: Sequence[tuple[PageViews, str]], count: int
) -> list[tuple[list[int], Tensor]]:
    """Read pages together through a GPU's runner without captured graphs, and note the logits of each.

    Args:
        engine: With `numbered_tokenizer`; nothing was read with it before.
        pages: Views, and who reads them: `ocr2` or an adapter.
        count: Tokens of a page, unless it ends.

    Returns:
        Tokens and logits `[tokens, vocabulary]` of each page.
    """
    kernels: Any = engine._runner._kernels  # type: ignore[attr-defined] # of a GPU's runner
    noted: dict[int, list[Tensor]] = {}

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return getattr(kernels, name)

        def choose(self, logits_RV: Tensor, slots_R: Tensor, *rest: Any) -> Tensor:
            for slot, logits_V in zip(slots_R.tolist(), logits_RV.float().cpu(), strict=True):
                noted.setdefault(slot, []).append(logits_V)
            report: Tensor = kernels.choose(logits_RV, slots_R, *rest)
            return report

    engine._runner._kernels = Noting()  # type: ignore[attr-defined]
    for index, (page, model_id) in enumerate(pages):
        engine.submit(SequenceRequest(str(index), page, PROMPT, SamplingParams(count), model_id))
    found: dict[int, tuple[list[int], Tensor]] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceResult):
                tokens = [int(token) for token in re.findall(r"\[(\d+)\]", event.text)]
                index = int(event.sequence_id)
                # Pages are admitted in order, so the slot is the index.
                found[index] = tokens, torch.stack(noted[index][: len(tokens)])
    return [found[index] for index in range(len(pages))]
