"""The flat pass over DeepSeek-OCR-2's encoders against transformers' own modules."""

import numpy as np
import pytest
import torch

from service.engine.kernels.reference import vision as reference
from service.engine.vision.queries import QueryVisionEncoder
from service.engine.vision.runner import GpuVision
from shared.deepseek_ocr.vision import normalise_views
from tests.support.ocr2 import reader_of, tiny_ocr2


def noise(count: int, side_px: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side_px, side_px, 3), np.uint8))


@pytest.mark.parametrize(("side_px", "patch_px", "tokens"), [(768, 16, 144), (1024, 16, 256), (1024, 32, 144)])
@torch.inference_mode()
def test_views_are_encoded_as_by_transformers(side_px: int, patch_px: int, tokens: int):
    theirs = tiny_ocr2(1, patch_px, is_global=True)
    views = noise(2 if patch_px == 32 else 1, side_px)
    hidden = theirs.model.vision_tower(normalise_views(views, torch.float32)).last_hidden_state
    expected = theirs.model.multi_modal_projector(hidden)
    found = QueryVisionEncoder(reader_of(theirs), reference).encode(views)
    assert found.shape[1] == tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_packing_keeps_one_copy_of_the_weights_and_the_model_as_it_was():
    model = reader_of(tiny_ocr2(1, 32, is_global=True))
    views = noise(1, 768)
    before, weights = model.encode_views(views), sum(p.numel() for p in model.parameters())
    vision = GpuVision(model)
    assert torch.equal(model.encode_views(views), before)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(storages.values()) == 4 * weights
    torch.testing.assert_close(vision.encode([views[0].numpy()])[0], before[0], rtol=1e-4, atol=1e-4)
