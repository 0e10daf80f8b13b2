"""Compiled encoders against the model's in float32, and what they do not take."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.cpu.bands import Band, BandPixels
from service.engine.cpu.canvas_encoder import CanvasEncoder
from service.engine.cpu.canvas_library import most_levels
from service.engine.cpu.loaded_library import NoLibraryError
from shared.deepseek_ocr.sam import SamBlock
from tests.support.nano import needs_nano
from tests.unit.service.engine.cpu.compiled_canvases import RUNNABLE, SIDE_PX, built, canvas_model, rounding_limit
from tests.unit.service.engine.cpu.test_bands import LINES, TOKEN_PX, checkpoint, page_of
from tests.unit.service.engine.tiny import tiny_model

pytestmark = pytest.mark.skipif(not RUNNABLE, reason="needs a C compiler and a processor with AVX2")


@pytest.fixture(scope="module", params=RUNNABLE, ids=lambda each: each.name)
def library(request, tmp_path_factory):
    return built(request.param, tmp_path_factory.mktemp("library"))


def band_of_noise(first_row: int, num_rows: int, width_px: int = SIDE_PX) -> BandPixels:
    """Squares of 20 px, so that neighbouring pixels are alike as in print."""
    random = np.random.default_rng(first_row + 100 * num_rows)
    height_px = num_rows * TOKEN_PX
    coarse = random.integers(0, 256, (-(-height_px // 20), width_px // 20, 3), dtype=np.uint8)
    pixels_HWC = np.kron(coarse, np.ones((20, 20, 1), np.uint8))[:height_px]
    return BandPixels(Band(first_row, num_rows, first_row, first_row + num_rows), pixels_HWC)


@torch.inference_mode()
def encoded_by(model, bands: list[BandPixels]) -> list[Tensor]:
    return [
        model.encode_bands(torch.from_numpy(each.pixels_HWC)[None], each.band.first_row)[0].float() for each in bands
    ]


def error(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Of each token, relative."""
    pairs = zip(found, expected, strict=True)
    return torch.cat([(one - other).norm(dim=1) / other.norm(dim=1) for one, other in pairs])


@pytest.mark.parametrize("places", [[(0, 5)], [(5, 5), (0, 5), (2, 5)], [(0, 10), (3, 5)]])
def test_tokens_are_the_models_up_to_rounding(places, library):
    model = canvas_model()
    bands = [band_of_noise(*place) for place in places]
    found = CanvasEncoder(library, model).encode(bands)
    assert error(found, encoded_by(model, bands)).max() < rounding_limit(library)


@pytest.mark.parametrize("place", [(0, 6), (2, 7), (1, 9)])
def test_a_band_that_ends_within_a_window_has_fewer_positions_in_its_last_ones(place, library, monkeypatch):
    model, band = canvas_model(), band_of_noise(*place)
    found = CanvasEncoder(library, model).encode([band])

    def forward(block: SamBlock, x_VHWC: Tensor, *, is_band: bool = False) -> Tensor:
        normed, size = block.norm1(x_VHWC), block.window_size
        if not size:
            attended = block.attn(normed, is_band=is_band)
        else:
            # A window of fewer rows attends as a band of one that is whole.
            rows = [
                torch.cat([block.attn(each, is_band=True) for each in row.split(size, dim=2)], dim=2)
                for row in normed.split(size, dim=1)
            ]
            attended = torch.cat(rows, dim=1)
        x_VHWC = x_VHWC + attended
        return x_VHWC + block.mlp(block.norm2(x_VHWC))

    monkeypatch.setattr(SamBlock, "forward", forward)
    assert error(found, encoded_by(model, [band])).max() < rounding_limit(library)


@needs_nano
def test_nanos_tokens_are_about_as_close_to_float32_as_in_bfloat16_or_much_closer(library):
    model: Any = checkpoint().model
    view = page_of(*LINES).global_view_HWC
    bands = [band_of_noise(*place, width_px=640) for place in ((4, 5), (10, 10), (0, 15))]
    bands.append(BandPixels(Band(7, 5, 7, 12), view[7 * TOKEN_PX : 12 * TOKEN_PX]))
    expected = encoded_by(model, bands)
    found = error(CanvasEncoder(library, model).encode(bands), expected)
    rounded = error(encoded_by(copy.deepcopy(model).bfloat16(), bands), expected)
    most = 1.6 if library.canvases_coarse() == 4 else 0.2
    assert found.square().mean().sqrt() < rounded.square().mean().sqrt() * most
    assert found.quantile(0.99) < rounded.quantile(0.99) * most
    assert found.max() < rounding_limit(library)


def test_threads_and_what_was_encoded_before_change_nothing(library):
    encoder = CanvasEncoder(library, canvas_model())
    bands = [band_of_noise(0, 5), band_of_noise(0, 10), band_of_noise(5, 5)]
    alone = [encoder.encode([each])[0] for each in bands]
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, encoder.encode(bands * 3), alone * 3))
    finally:
        torch.set_num_threads(threads)


def test_the_most_levels_leave_room_for_every_sum():
    for inputs in (36, 64, 288, 520, 1024, 1280, 2304, 5000):
        assert most_levels(inputs) * 127 * inputs < 2**31


def test_extreme_weights_and_inputs_do_not_overflow(library):
    model = canvas_model()
    with torch.no_grad():
        model.model.projector.layers.weight.fill_(0.5)
        for layer in model.model.vision_model.transformer.layers:
            # Every hidden unit is as large as the others, and all are added up.
            layer.mlp.fc1.weight.fill_(0.01)
            layer.mlp.fc1.bias.fill_(3.0)
            layer.mlp.fc2.weight.fill_(0.25)
    bands = [band_of_noise(0, 5)]
    assert error(CanvasEncoder(library, model).encode(bands), encoded_by(model, bands)).max() < rounding_limit(library)


@pytest.mark.parametrize(
    "changes",
    [
        {"sam_config": {"num_attention_heads": 2}},
        {"sam_config": {"window_size": 5}},
        {"sam_config": {"neck_channels": 40}},
        {"sam_config": {"stem_channels": (32, 32, 40, 64)}},
        {"sam_config": {"downsample_strides": (2, 2)}, "clip_config": {"image_size": 70}},
        {"sam_config": {"image_size": 960}, "clip_config": {"image_size": 420}},
        {"clip_config": {"intermediate_size": 100}},
        {"text_config": {"hidden_size": 112}},
    ],
)
def test_other_shapes_are_refused(changes, library):
    with pytest.raises(NoLibraryError, match="other shapes"):
        CanvasEncoder(library, canvas_model(**changes))


def test_another_models_parts_are_refused(library):
    with pytest.raises(NoLibraryError, match="other shapes"):
        CanvasEncoder(library, tiny_model())


def test_weights_that_are_no_levels_are_refused(library):
    model = canvas_model()
    with torch.no_grad():
        model.model.sam_model.blocks[1].mlp.lin1.weight[3, 4] += 1e-4
    with pytest.raises(NoLibraryError, match="8-bit"):
        CanvasEncoder(library, model)


@pytest.mark.parametrize("broken", ["dtype", "width", "height", "rows"])
def test_what_does_not_fit_is_not_handed_to_the_library(broken, library):
    band, pixels_HWC = Band(0, 5, 0, 5), np.zeros((160, SIDE_PX, 3), np.uint8)
    if broken == "dtype":
        pixels_HWC = pixels_HWC.astype(np.float32)
    elif broken == "width":
        pixels_HWC = pixels_HWC[:, :300]
    elif broken == "height":
        pixels_HWC = pixels_HWC[:150]
    else:
        band, pixels_HWC = Band(0, 3, 0, 3), pixels_HWC[:96]
    with pytest.raises(AssertionError):
        CanvasEncoder(library, canvas_model()).encode([BandPixels(band, pixels_HWC)])


def test_a_band_beyond_the_view_is_an_error(library):
    with pytest.raises(ValueError, match="no band"):
        CanvasEncoder(library, canvas_model()).encode([band_of_noise(6, 5)])
