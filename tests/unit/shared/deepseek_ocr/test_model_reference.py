"""The model against tensors of an independent implementation; see reference/make_model_reference.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.deepseek_ocr.checkpoint import load_model
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = 1e-4
NUM_GREEDY = 200


@pytest.fixture(scope="module")
def model():
    return load_model(REFERENCE / "model")


@pytest.fixture(scope="module")
def expected():
    return load_file(REFERENCE / "model_expected.safetensors")


def images_of(expected: dict[str, torch.Tensor], page: str):
    images = {"global_views_BHWC": expected[f"{page}.global_view"]}
    if f"{page}.tiles" in expected:
        images |= {"tiles_THWC": expected[f"{page}.tiles"], "tile_grids_B2": expected[f"{page}.grid"]}
    return images


def relative_error(ours: torch.Tensor, theirs: torch.Tensor):
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Views smaller than, equal to and larger than the stored position embeddings; gundam has six tiles besides.
@pytest.mark.parametrize("page", ["small", "stored", "large", "gundam"])
@torch.inference_mode()
def test_vision_features_match(
    model: DeepseekOcrForConditionalGeneration, expected: dict[str, torch.Tensor], page: str
):
    features = model.image_features(**images_of(expected, page))
    assert relative_error(features[0], expected[f"{page}.features"]) <= TOLERANCE


@pytest.mark.parametrize("experts", ["grouped", "dense"])
@pytest.mark.parametrize("page", ["small", "stored", "large", "gundam"])
@torch.inference_mode()
def test_logits_match(
    model: DeepseekOcrForConditionalGeneration, expected: dict[str, torch.Tensor], page: str, experts: str
):
    model.set_moe_implementation(experts)
    logits = model(expected[f"{page}.input_ids"], **images_of(expected, page)).logits[0]
    assert relative_error(logits, expected[f"{page}.logits"]) <= TOLERANCE


@pytest.mark.parametrize("experts", ["grouped", "dense"])
@pytest.mark.parametrize("page", ["stored", "gundam"])
def test_200_greedy_tokens_are_the_same(
    model: DeepseekOcrForConditionalGeneration, expected: dict[str, torch.Tensor], page: str, experts: str
):
    model.set_moe_implementation(experts)
    input_ids = expected[f"{page}.input_ids"]
    output = model.generate(input_ids, **images_of(expected, page), max_new_tokens=NUM_GREEDY, do_sample=False)
    assert output[0, input_ids.shape[1] :].tolist() == expected[f"{page}.greedy"].tolist()


@torch.inference_mode()
def test_each_vision_part_is_in_the_proof(
    model: DeepseekOcrForConditionalGeneration, expected: dict[str, torch.Tensor]
):
    """The reference would be worthless if a part of the encoder had no influence on it."""
    images = images_of(expected, "gundam")
    truth = model.image_features(**images)[0]
    for name in (
        "sam_model.blocks.0.attn.rel_pos_h",
        "sam_model.blocks.1.attn.rel_pos_w",
        "sam_model.pos_embed",
        "vision_model.embeddings.position_embedding.weight",
        "image_newline",
        "view_seperator",
    ):
        parameter = model.model.get_parameter(name)
        saved = parameter.clone()
        parameter.mul_(1.1)
        assert relative_error(model.image_features(**images)[0], truth) > 10 * TOLERANCE, name
        parameter.copy_(saved)
