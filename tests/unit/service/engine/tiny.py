"""A model of the real classes, small enough to generate a page in milliseconds, and pages for it."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from service.engine.config import EngineLimits
from service.engine.cpu.model_runner import ModelRunner
from service.engine.cpu.runner import CpuRunner
from service.engine.engine import TorchEngine
from service.engine.lora.bank import make_bank
from service.engine.protocol import EngineInfo, SamplingParams, SequenceEvent, SequenceRequest
from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig, geometry_to_json
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling, plan_views
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.tokenizer import BOS, EOS, GROUNDING_TOKENS, IMAGE, PAD, OcrTokenizer

GEOMETRY = GeometryConfig(
    downsample=2,
    small_px=64,
    tile_px=64,
    global_px=64,
    squash=(),
    upscale=False,
    tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
)
PROMPT = "\nFree OCR."
SPECIAL = (BOS, EOS, PAD, IMAGE, *GROUNDING_TOKENS)


def tiny_tokenizer() -> OcrTokenizer:
    """Byte-level without merges: 256 bytes after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return OcrTokenizer(backend)


def tiny_config() -> DeepseekOcrConfig:
    return DeepseekOcrConfig(
        sam_config=SamConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            window_size=2,
            global_layers=(1,),
            neck_channels=8,
            downsample_channels=(16, 24),
            downsample_strides=(2, 1),
        ),
        clip_config=ClipConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
        ),
        text_config=TextConfig(
            vocab_size=len(SPECIAL) + 256,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=512,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
        ),
        geometry=geometry_to_json(GEOMETRY),
        image_token_id=3,
    )


def tiny_model(seed: int = 0) -> DeepseekOcrForConditionalGeneration:
    """Random weights, scaled up so that pages and positions change what is chosen."""
    torch.manual_seed(seed)
    model = DeepseekOcrForConditionalGeneration(tiny_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


def tiny_engine(model: DeepseekOcrForConditionalGeneration | None = None, **limits) -> TorchEngine:
    model = model or tiny_model()
    values = EngineLimits(**{"batch_size": 4, "max_new_tokens": 64, "max_sequence_tokens": 256, **limits})
    info = EngineInfo(
        model_id="tiny",
        device="cpu",
        dtype="float32",
        geometry=GEOMETRY,
        max_new_tokens=values.max_new_tokens,
        max_sequence_tokens=values.max_sequence_tokens,
        batch_size=values.batch_size,
    )
    rows = ModelRunner(
        model,
        max_rows=values.batch_size,
        max_tokens=values.max_sequence_tokens + 1,
        growth_tokens=16,
        bank=make_bank(model, values),
    )
    tokenizer = tiny_tokenizer()
    kv_tokens = values.kv_tokens or values.batch_size * values.max_sequence_tokens
    runner = CpuRunner(rows, eos_id=tokenizer.eos_id, rule=values.loop_rule, kv_tokens=kv_tokens)
    return TorchEngine(runner, tokenizer, info, values)


def tiny_page(seed: int, width_px: int = 64, height_px: int = 64) -> PageViews:
    """Noise of the size's plan; 128 x 64 gives two tiles."""
    plan = plan_views(width_px, height_px, Mode.GUNDAM, GEOMETRY)
    noise = np.random.default_rng(seed)
    return PageViews(
        plan=plan,
        global_view_HWC=noise.integers(0, 256, (plan.global_px, plan.global_px, 3), np.uint8),
        tiles_THWC=noise.integers(0, 256, (plan.num_tiles, plan.tile_px, plan.tile_px, 3), np.uint8),
    )


def tiny_request(name: str, seed: int = 0, max_new_tokens: int = 24, **changes) -> SequenceRequest:
    width_px = changes.pop("width_px", 64)
    values = {"page": tiny_page(seed, width_px), "prompt": PROMPT, "model_id": "tiny", **changes}
    return SequenceRequest(sequence_id=name, params=SamplingParams(max_new_tokens), **values)


def drain(engine: TorchEngine) -> list[SequenceEvent]:
    """Step until nothing is left."""
    events: list[SequenceEvent] = []
    while engine.has_work:
        events += engine.step()
        engine.check_integrity()
    return events
