"""Views without their padding: what is left of them, and that nano reads the same from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from service.engine.config import EngineLimits
from service.engine.cpu.bands import PartialFeatures, band_of, rows_of
from service.engine.factory import make_engine
from service.engine.protocol import SamplingParams, SequenceRequest, SequenceResult
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage
from shared.deepseek_ocr.geometry import PADDING_GREY, plan_views
from shared.deepseek_ocr.line_views import view_of
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from shared.images.canvases import KEPT_ROWS, Canvas
from tests.support.nano import NANO, needs_nano
from tests.unit.service.engine.tiny import drain

TOKEN_PX = 32
LIMITS = EngineLimits(batch_size=4, max_new_tokens=60, max_sequence_tokens=2048)
LINES = ("Invoice 2041, 17.50 EUR", "The quick brown fox jumps", "No. 7 on the left side", "Harbour Street 12")


def view_with(top: int, bottom: int) -> np.ndarray:
    view = np.full((640, 640, 3), PADDING_GREY, np.uint8)
    view[top:bottom, 100:300] = 255
    return view


@pytest.mark.parametrize(
    ("top", "bottom", "first", "count", "shown"),
    [
        (224, 384, 7, 5, (7, 12)),
        (230, 390, 7, 10, (7, 13)),
        (0, 20, 0, 5, (0, 1)),
        (630, 640, 15, 5, (19, 20)),
        (33, 400, 1, 15, (1, 13)),
        (0, 490, 0, 20, (0, 16)),
        (0, 640, 0, 20, (0, 20)),
    ],
)
def test_a_band_holds_all_that_is_shown(top, bottom, first, count, shown):
    view = view_with(top, bottom)
    band = band_of(view, TOKEN_PX)
    assert band is not None
    assert (band.first_row, band.num_rows, (band.first_shown, band.end_shown)) == (first, count, shown)
    pixels = rows_of(view, band, TOKEN_PX)
    assert pixels.shape == (count * TOKEN_PX, 640, 3)
    assert (pixels != PADDING_GREY).sum() == (view != PADDING_GREY).sum()


@pytest.mark.parametrize(
    ("top", "bottom", "first", "count"),
    [(224, 384, 7, 5), (230, 390, 7, 6), (192, 416, 6, 8), (160, 480, 5, 10), (33, 400, 1, 15), (480, 640, 15, 5)],
)
def test_a_low_band_may_end_within_a_window(top, bottom, first, count):
    band = band_of(view_with(top, bottom), TOKEN_PX, cuts_windows=True)
    assert band is not None
    assert (band.first_row, band.num_rows) == (first, count)


@pytest.mark.parametrize("view", [view_with(0, 0), view_with(0, 90)[:600, :600]])
def test_views_without_a_band_are_read_whole(view):
    assert band_of(view, TOKEN_PX) is None


def test_a_prompt_keeps_its_text_and_the_images_with_vectors():
    features = PartialFeatures(torch.zeros(2, 4), [1, 3], 4)
    assert features.positions([0, 9, 9, 9, 9, 5, 6], 9) == [0, 2, 4, 5, 6]


def page_of(*lines: str, height: int = 150) -> PageViews:
    image = Image.new("L", (520, height), "white")
    ImageDraw.Draw(image).multiline_text((10, 8), "\n".join(lines), font=ImageFont.load_default(24), fill="black")
    return view_of(Canvas((), (), np.asarray(image)), checkpoint().geometry)


def page_of_tiles(*lines: str) -> PageImage:
    """More than one view, so that it is read whole."""
    image = Image.new("L", (1000, 150), "white")
    ImageDraw.Draw(image).multiline_text((10, 8), "\n".join(lines), font=ImageFont.load_default(24), fill="black")
    geometry = checkpoint().geometry
    plan = plan_views(*image.size, geometry.default_mode, geometry)
    assert plan.num_tiles > 1
    return PageImage(plan, np.asarray(image.convert("RGB")))


@cache
def checkpoint() -> LoadedCheckpoint:
    return load_checkpoint(NANO)


def read(limits: EngineLimits, pages: Sequence[PreparedPage]) -> tuple[list[SequenceResult], list[int]]:
    """Results in the order of the pages, and the heights of what was encoded."""
    engine = make_engine(checkpoint(), limits)
    heights: list[int] = []
    runner: Any = engine._runner
    hook = runner._model.model.sam_model.register_forward_pre_hook(
        lambda _, inputs: heights.extend([inputs[0].shape[2]] * len(inputs[0]))
    )
    for number, page in enumerate(pages):
        prompt, params = prompt_for(Task.FREE), SamplingParams(limits.max_new_tokens)
        engine.submit(SequenceRequest(str(number), page, prompt, params, engine.info.model_id))
    results = [event for event in drain(engine) if isinstance(event, SequenceResult)]
    hook.remove()
    return sorted(results, key=lambda result: result.sequence_id), heights


def words(results: list[SequenceResult]) -> list[list[str]]:
    """Without empty lines, which readers of canvases pass over."""
    return [[line for line in result.text.split("\n") if line] for result in results]


def check_same_reading(limits: EngineLimits, tolerance: float) -> None:
    """Canvases are read with these limits as without; only the view of padding is encoded by the model itself."""
    pages = [page_of(*LINES), page_of(*LINES[:2], height=80), page_of(LINES[3], height=40)]
    found, heights = read(limits, pages)
    assert heights == [640]
    exact, _ = read(LIMITS, pages)
    assert words(found) == words(exact)
    for one, other in zip(found, exact, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=tolerance)


@needs_nano
def test_nano_reads_the_same_from_bands_as_from_whole_views():
    pages = [page_of(*LINES), page_of(*LINES[:2], height=80), page_of(LINES[3], height=40), page_of(height=620)]
    bands, heights = read(LIMITS, pages)
    whole, whole_heights = read(replace(LIMITS, skips_padding=False), pages)
    assert words(bands) == words(whole)
    assert words(bands)[0] == list(LINES)
    # What a request costs does not depend on the device that reads it.
    assert [result.vision_tokens for result in bands] == [421] * 4
    assert whole_heights == [640] * 4
    # One page fills its view, with a band of all rows; the view of padding alone is encoded once.
    assert sorted(heights) == [160, 160, 160, 640, 640]


@needs_nano
def test_a_page_of_several_views_keeps_its_padding():
    _, heights = read(LIMITS, [page_of_tiles(*LINES)])
    assert heights == [640] * 3


@needs_nano
def test_only_engines_that_skip_padding_say_so():
    loaded = checkpoint()
    assert make_engine(loaded, LIMITS).info.skips_padding
    assert not make_engine(loaded, replace(LIMITS, skips_padding=False)).info.skips_padding


@needs_nano
def test_a_prompt_has_the_rows_next_to_what_is_shown_at_their_own_positions():
    loaded = checkpoint()
    runner = make_engine(loaded, LIMITS)._runner
    page = page_of(*LINES)
    [pixels] = runner.prepare(page, loaded.geometry)
    features = runner.assemble([(page.plan, runner.encode([pixels]))])
    band = pixels.band
    rows = range((band.first_shown - KEPT_ROWS) * 21, (band.end_shown + KEPT_ROWS) * 21)
    assert list(features.places) == [*rows, 420]
    ids = loaded.tokenizer.encode_prompt(page.plan, prompt_for(Task.FREE))
    positions = features.positions(ids, loaded.model.config.image_token_id)
    assert positions[:2] == [0, rows.start + 1]
    assert positions[-1] == len(ids) - 1
    assert len(positions) == len(ids) - (421 - len(features.features_KD))
