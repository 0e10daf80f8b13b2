"""Small models of the real classes, with weights large enough that every part matters."""

from typing import Any

import torch

from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig, geometry_to_json
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration

IMAGE = 3


def tiny_config(**text: Any) -> DeepseekOcrConfig:
    """Two global and one windowed layer (5 patches in windows of 3), a convolutional stem, 4 experts."""
    return DeepseekOcrConfig(
        sam_config=SamConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=80,
            window_size=3,
            global_layers=(0, 2),
            stem_channels=(4, 4, 8, 8),
            neck_channels=8,
            downsample_channels=(12, 20),
            downsample_strides=(2, 1),
        ),
        clip_config=ClipConfig(
            hidden_size=20, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=42
        ),
        text_config=TextConfig(
            **{
                "vocab_size": 64,
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "moe_intermediate_size": 12,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_shared_experts": 1,
                "eos_token_id": None,
                **text,
            }
        ),
        geometry=geometry_to_json(GeometryConfig(downsample=2, tile_px=80, global_px=80)),
        image_token_id=IMAGE,
    )


def tiny_model(**text: Any) -> DeepseekOcrForConditionalGeneration:
    """A model whose activations are of order one everywhere."""
    torch.manual_seed(5)
    model = DeepseekOcrForConditionalGeneration(tiny_config(**text)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 1.5 * fan_in**-0.5)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.model.embed_tokens.weight.copy_(torch.randn(model.model.embed_tokens.weight.shape))
    return model


def views(count: int, size_px: int = 80, seed: int = 0) -> torch.Tensor:
    """Noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size_px, size_px, 3), generator=generator, dtype=torch.uint8)


def prompt_ids(num_vision_tokens: int, *text: int) -> torch.Tensor:
    """bos, image tokens, text: `[1, L]`."""
    return torch.tensor([[0] + [IMAGE] * num_vision_tokens + list(text)])
