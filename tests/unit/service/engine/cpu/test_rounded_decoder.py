"""The rounded decoder of canvases against the model in float32, up to what bfloat16 rounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from service.engine.cpu import rounded_decoder
from service.engine.cpu.compiled_decoder import CompiledDecoder
from service.engine.cpu.kv_cache import SlotCache
from service.engine.cpu.rounded_decoder import RoundedDecoder
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from tests.unit.service.engine.cpu.test_packed_decoder import randomised
from tests.unit.service.engine.tiny import tiny_config, tiny_model

LENGTH, STEPS = 12, 3
CHANGES = [
    {},
    {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
    {"num_experts_per_tok": 1, "n_shared_experts": 0},
    {"first_k_dense_replace": 3},
]


def model_of(changes) -> DeepseekOcrForConditionalGeneration:
    torch.manual_seed(1)
    config = tiny_config()
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    return randomised(DeepseekOcrForConditionalGeneration(config).eval())


def cache_of(model, rows: int, dtype: torch.dtype) -> SlotCache:
    text = model.config.text_config
    return SlotCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        max_rows=rows,
        max_tokens=64,
        dtype=dtype,
    )


@torch.inference_mode()
def logits_of_model(model, ids_BL: Tensor, tokens_SB: Tensor) -> list[Tensor]:
    """Of prompts' ends, and of steps after them."""
    cache = cache_of(model, len(ids_BL), torch.float32)
    embed, found = model.model.embed_tokens, []
    window = cache.open_rows(*ids_BL.shape)
    hidden, _ = model.model.decode(embed(ids_BL), torch.arange(LENGTH)[None], None, window)
    found.append(model.lm_head(hidden[:, -1]))
    for tokens_B in tokens_SB:
        step = cache.open_step()
        hidden, _ = model.model.decode(embed(tokens_B[:, None]), step.position_ids_B1, step.mask_B11S, step)
        found.append(model.lm_head(hidden[:, -1]))
    return found


@torch.inference_mode()
def logits_rounded(model, ids_BL: Tensor, tokens_SB: Tensor, stepping: CompiledDecoder | None = None) -> list[Tensor]:
    """As `logits_of_model`; steps are the decoder's itself if no other is given."""
    cache, decoder = cache_of(model, len(ids_BL), torch.bfloat16), RoundedDecoder(model, 64)
    embeds_BLH = model.model.embed_tokens(ids_BL)
    positions_BL = torch.arange(LENGTH).expand(ids_BL.shape)
    found = [decoder.read(embeds_BLH, positions_BL, cache.open_rows(*ids_BL.shape))]
    stepping_decoder = stepping or decoder
    return found + [stepping_decoder.step(tokens_B.tolist(), cache.open_step()) for tokens_B in tokens_SB]


@pytest.mark.parametrize("few_rows", [0, 16])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("changes", CHANGES)
def test_logits_are_the_models_but_for_rounding(rows, few_rows, changes, monkeypatch):
    monkeypatch.setattr(rounded_decoder, "FEW_ROWS", few_rows)
    model = model_of(changes)
    ids_BL, tokens_SB = torch.randint(20, 200, (rows, LENGTH)), torch.randint(20, 200, (STEPS, rows))
    pairs = zip(logits_of_model(model, ids_BL, tokens_SB), logits_rounded(model, ids_BL, tokens_SB), strict=True)
    for expected, found in pairs:
        assert found.dtype == torch.float32
        assert (found - expected).norm() / expected.norm() < 0.02


def test_a_torch_without_the_quick_products_gives_the_same(monkeypatch):
    model = tiny_model()
    ids_BL, tokens_SB = torch.randint(20, 200, (2, LENGTH)), torch.randint(20, 200, (STEPS, 2))
    expected = logits_rounded(model, ids_BL, tokens_SB)

    def refuse(_weight):
        raise AttributeError("not in this torch")

    monkeypatch.setattr(rounded_decoder, "HalfWeights", refuse)
    monkeypatch.setattr(rounded_decoder, "PackedWeights", refuse)
    for one, other in zip(logits_rounded(model, ids_BL, tokens_SB), expected, strict=True):
        assert (one - other).norm() / other.norm() < 0.02
