"""Canvases in bfloat16 where the processor has tiles: the same words, and all else stays float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from service.engine.cpu import compiled_decoder, rounded, runner
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.cpu.rounded import has_tiles, rounded_reader
from service.engine.cpu.rounded_decoder import MAX_EXPERTS
from service.engine.factory import make_engine
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from tests.support.nano import needs_nano
from tests.unit.service.engine.cpu.test_bands import (
    LIMITS,
    LINES,
    check_same_reading,
    checkpoint,
    page_of,
    page_of_tiles,
    read,
)
from tests.unit.service.engine.tiny import tiny_config, tiny_model


def test_the_encoder_rounds_and_the_model_stays():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    encoder: Any = rounded_reader(model, 64).encoder
    assert {each.dtype for each in encoder.parameters()} == {torch.bfloat16}
    assert not encoder.decoder.layers
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    views = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, found = model.encode_views(views), encoder.encode_views(views).float()
    assert 0 < (exact - found).norm() / exact.norm() < 0.05


def test_other_models_are_not_rounded(monkeypatch):
    assert rounded_reader(tiny_model().to(torch.float16), 64) is None
    config = tiny_config()
    config.text_config.n_routed_experts = MAX_EXPERTS + 1
    assert rounded_reader(DeepseekOcrForConditionalGeneration(config).eval(), 64) is None
    monkeypatch.setattr(rounded, "MAX_WEIGHTS", 10)
    assert rounded_reader(tiny_model(), 64) is None


@pytest.mark.parametrize(("capabilities", "expected"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, False)])
def test_only_tiles_are_worth_rounding(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_tiles() is expected


def test_a_torch_that_does_not_say_has_no_tiles(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_tiles()


def rounds(limits, *, tiles, monkeypatch) -> bool:
    monkeypatch.setattr(runner, "has_tiles", lambda: tiles)
    made: Any = make_engine(checkpoint(), limits)._runner
    return made._rounded is not None


@needs_nano
def test_canvases_are_rounded_only_where_that_is_wanted_and_fast(monkeypatch):
    wanted = replace(LIMITS, rounds_canvases=True)
    assert rounds(wanted, tiles=True, monkeypatch=monkeypatch)
    assert not rounds(wanted, tiles=False, monkeypatch=monkeypatch)
    assert not rounds(LIMITS, tiles=True, monkeypatch=monkeypatch)
    assert not rounds(replace(wanted, skips_padding=False), tiles=True, monkeypatch=monkeypatch)


@pytest.fixture
def no_library(monkeypatch):
    def refuse():
        raise NoLibraryError("not built")

    monkeypatch.setattr(compiled_decoder, "load", refuse)


@needs_nano
@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(("wanted", "said"), [(True, "torch (not built)"), (False, "torch")])
def test_the_engine_says_why_it_decodes_canvases_with_torch(tiles, wanted, said, no_library, monkeypatch):
    monkeypatch.setattr(runner, "has_tiles", lambda: tiles)
    engine = make_engine(checkpoint(), replace(LIMITS, rounds_canvases=wanted))
    assert engine.info.steps == said
    made: Any = engine._runner
    assert (made._rounded_lane is not None) is (tiles and wanted)


@needs_nano
def test_nano_reads_the_same_from_rounded_canvases(monkeypatch):
    monkeypatch.setattr(runner, "has_tiles", lambda: True)
    check_same_reading(replace(LIMITS, rounds_canvases=True), tolerance=0.02)


@needs_nano
def test_pages_that_are_read_whole_are_exact(monkeypatch):
    page = page_of_tiles(*LINES)
    [exact], _ = read(LIMITS, [page])
    monkeypatch.setattr(runner, "has_tiles", lambda: True)
    [found], heights = read(replace(LIMITS, rounds_canvases=True), [page])
    assert heights == [640] * 3
    assert found.text == exact.text
    assert found.confidence == exact.confidence


@needs_nano
def test_exact_and_rounded_pages_in_one_batch_do_not_change_each_other(monkeypatch):
    whole, canvas = page_of_tiles(*LINES), page_of(*LINES[:2], height=80)
    monkeypatch.setattr(runner, "has_tiles", lambda: True)
    limits = replace(LIMITS, rounds_canvases=True)
    alone = [read(limits, [page])[0][0] for page in (whole, canvas, whole)]
    together, _ = read(limits, [whole, canvas, whole])
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
