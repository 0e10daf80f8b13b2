"""What the vision encoder costs on a GPU at public size, and that bf16 stays near float32."""

import pytest
import torch

from shared.deepseek_ocr.configuration import DeepseekOcrConfig, TextConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration

pytestmark = pytest.mark.gpu
GIB = 2**30


def public_encoder(dtype: torch.dtype) -> DeepseekOcrForConditionalGeneration:
    """Public vision dimensions over a decoder of one small layer."""
    torch.manual_seed(0)
    text = TextConfig(vocab_size=64, num_hidden_layers=1, intermediate_size=64)
    with torch.device("cuda"):
        model = DeepseekOcrForConditionalGeneration(DeepseekOcrConfig(text_config=text))
    return model.eval().to(dtype)


def noise(count: int, size_px: int) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(1)
    shape = (count, size_px, size_px, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cuda")


@torch.inference_mode()
def test_16_views_of_1024_px_stay_under_10_gib():
    model = public_encoder(torch.bfloat16)
    views = noise(16, 1024)
    torch.cuda.reset_peak_memory_stats()
    tokens = model.encode_views(views)
    assert tokens.shape == (16, 256, 1280)
    assert torch.cuda.max_memory_allocated() < 10 * GIB


@torch.inference_mode()
def test_bf16_features_are_near_float32():
    views = noise(2, 640)
    exact, near = (public_encoder(dtype).encode_views(views).float() for dtype in (torch.float32, torch.bfloat16))
    assert float((near - exact).norm() / exact.norm()) < 0.03


def test_gradients_on_the_device_are_finite():
    model = public_encoder(torch.bfloat16).train()
    model.encode_views(noise(1, 640)).float().square().mean().backward()
    gradients = [p.grad for p in (*model.model.sam_model.parameters(), *model.model.vision_model.parameters())]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
