"""DeepSeek-OCR-2 over Triton kernels against transformers' own class: on a CPU the encoder alone, interpreted."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekOcr2ForConditionalGeneration

from service.engine.config import EngineLimits, WeightForm
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.kernels.reference import vision as vision_reference
from service.engine.vision.queries import QueryVisionEncoder
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.loading import LoadedCheckpoint
from shared.deepseek_ocr.ocr2 import OCR2_GEOMETRY
from shared.deepseek_ocr.vision import normalise_views
from tests.support.interpreter import DEVICE, HAS_GPU, import_kernels, relative_error
from tests.support.ocr2 import (
    PAGES,
    engine_logits,
    forced_logits,
    in_type,
    lora_of,
    noise_page,
    numbered_tokenizer,
    reader_of,
    tiny_ocr2,
)
from tests.unit.service.engine.tiny import PROMPT

pytestmark = [pytest.mark.gpu] if HAS_GPU else []
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
TOLERANCE = 2e-2 if HAS_GPU else 1e-4
"""Of bfloat16, beyond what transformers' own class is off from float32; of float32 in all."""


@torch.inference_mode()
@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize(("side_px", "patch_px"), [(768, 16), (1024, 16)] if HAS_GPU else [(768, 96)])
def test_views_are_encoded_as_by_transformers(side_px: int, patch_px: int, kernels: str):
    chosen = import_kernels("service.engine.kernels.triton.vision") if kernels == "fused" else vision_reference
    theirs = tiny_ocr2(1, patch_px, is_global=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1 + 2 * HAS_GPU, side_px, side_px, 3), np.uint8)
    views = torch.from_numpy(pixels).to(DEVICE)

    def encode(dtype: torch.dtype) -> torch.Tensor:
        model = in_type(theirs, DEVICE, dtype).model
        return model.multi_modal_projector(model.vision_tower(normalise_views(views, dtype)).last_hidden_state)

    exact, near = encode(torch.float32), encode(DTYPE)
    found = QueryVisionEncoder(in_type(reader_of(theirs), DEVICE, DTYPE), chosen).encode(views)
    assert relative_error(found, exact) < relative_error(near, exact) + TOLERANCE


@torch.inference_mode()
@pytest.mark.skipif(not HAS_GPU, reason="no CPU multiplies rows of FP8")
def test_views_in_fp8_are_what_plain_torch_emulates():
    theirs = tiny_ocr2(1, 16, is_global=True)
    views = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 768, 768, 3), np.uint8)).to(DEVICE)
    exact = QueryVisionEncoder(in_type(reader_of(theirs), DEVICE, torch.float32), vision_reference).encode(views)
    model = in_type(reader_of(theirs), DEVICE, DTYPE)
    fused, emulated = (
        relative_error(QueryVisionEncoder(model, kernels, is_fp8=True).encode(views), exact)
        for kernels in (import_kernels("service.engine.kernels.triton.vision"), vision_reference)
    )
    assert fused < max(TOLERANCE, 1.2 * emulated)


@pytest.mark.skipif(not HAS_GPU, reason="takes minutes in the interpreter")
@pytest.mark.parametrize("weights", [WeightForm.FULL, WeightForm.INT8])
def test_pages_read_together_have_the_logits_of_transformers(weights: WeightForm):
    theirs = tiny_ocr2(2)
    pages = [(noise_page(size, seed), "ocr2") for seed, size in enumerate(PAGES)]
    read = engine_logits(engine_of(theirs, weights=weights), pages, 12)
    allowed = 0.1 if weights is WeightForm.INT8 else TOLERANCE
    for (page, _), (tokens, found) in zip(pages, read, strict=True):
        assert excess(theirs, page, tokens, found) < allowed


@pytest.mark.skipif(not HAS_GPU, reason="takes minutes in the interpreter")
def test_adapters_and_base_in_one_batch_have_the_logits_of_peft():
    engine = engine_of(tiny_ocr2(2), adapter_slots=2, adapter_max_rank=8)
    models = {"ocr2": tiny_ocr2(2)}
    for seed, rank in enumerate((2, 8)):
        files, models[f"a{seed}@1"] = lora_of(tiny_ocr2(2), seed, rank)
        engine.load_adapter(f"a{seed}@1", files)
    page = noise_page("two tiles", 1)
    read = engine_logits(engine, [(page, name) for name in models], 12)
    for theirs, (tokens, found) in zip(models.values(), read, strict=True):
        assert excess(theirs, page, tokens, found) < TOLERANCE


def engine_of(theirs: DeepseekOcr2ForConditionalGeneration, **limits: Any) -> TorchEngine:
    never = LoopRule(min_tokens=10_000)
    chosen = EngineLimits(batch_size=4, max_sequence_tokens=1300, loop_rule=never, cuda_graphs=False, **limits)
    model = in_type(reader_of(theirs), DEVICE, DTYPE)
    return make_engine(LoadedCheckpoint(model, numbered_tokenizer(), OCR2_GEOMETRY, "ocr2"), chosen)


def excess(theirs: torch.nn.Module, page: PageViews, tokens: list[int], found: torch.Tensor) -> float:
    """How much further from float32 the logits are than those of transformers' class in the same type."""
    ids = numbered_tokenizer().encode_prompt(page.plan, PROMPT)
    exact = forced_logits(in_type(theirs, DEVICE, torch.float32), page, ids, tokens)
    same_type = forced_logits(in_type(theirs, DEVICE, DTYPE), page, ids, tokens)
    return relative_error(found, exact) - relative_error(same_type, exact)
