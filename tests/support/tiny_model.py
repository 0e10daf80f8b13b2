"""A model of nano's classes and geometry in miniature, with random weights, and its tokenizer."""

from __future__ import annotations

from functools import cache

import torch

from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig, geometry_to_json
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.nano.corpus.tokenizer import train_tokenizer

SIDE_PX = 64
TINY_GEOMETRY = GeometryConfig(
    downsample=2,
    small_px=SIDE_PX,
    tile_px=SIDE_PX,
    global_px=SIDE_PX,
    squash=(),
    upscale=False,
    tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
)


@cache
def tiny_tokenizer() -> OcrTokenizer:
    """Bytes, special tokens and a few pairs."""
    return OcrTokenizer(train_tokenizer(["the page, the text; 12 of 34\n"] * 4, vocab_size=280))


def tiny_config() -> DeepseekOcrConfig:
    """Two layers of everything; 16 tokens a view."""
    return DeepseekOcrConfig(
        sam_config=SamConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE_PX,
            window_size=2,
            global_layers=(1,),
            stem_channels=(8, 8, 16, 16),
            neck_channels=16,
            downsample_channels=(32, 32),
            downsample_strides=(2, 1),
        ),
        clip_config=ClipConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        text_config=TextConfig(
            vocab_size=tiny_tokenizer().vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            # Wide enough that random logits differ by far more than rounding.
            initializer_range=0.4,
        ),
        geometry=geometry_to_json(TINY_GEOMETRY),
        image_token_id=3,
    )


def tiny_model(seed: int = 0) -> DeepseekOcrForConditionalGeneration:
    """A model on the CPU in float32, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DeepseekOcrForConditionalGeneration(tiny_config()).eval()
