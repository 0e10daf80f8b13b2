"""The shipped model through both runners: token for token what transformers' generation reads."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from service.engine.config import EngineLimits, WeightForm
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.protocol import SamplingParams, SequenceRequest, SequenceResult
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.images import prepare_views
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from tests.support.nano import NANO, needs_nano
from tests.unit.service.engine.gpu_tiny import paged_runner
from tests.unit.service.engine.tiny import drain

TEXTS = ("Invoice 2041\nTotal: 17.50", "The quick brown fox", "No. 7, left\nNo. 8, right\nNo. 9")
TOKENS = 24
LIMITS = EngineLimits(batch_size=3, max_new_tokens=TOKENS, max_sequence_tokens=1024)


@cache
def checkpoint() -> LoadedCheckpoint:
    return load_checkpoint(NANO)


def page_of(text: str) -> PageViews:
    image = Image.new("RGB", (480, 200), "white")
    ImageDraw.Draw(image).multiline_text((20, 20), text, font=ImageFont.load_default(32), fill="black")
    geometry = checkpoint().geometry
    plan = plan_views(*image.size, geometry.default_mode, geometry)
    return PageViews(plan, *prepare_views(image, plan, geometry))


def generated(page: PageViews) -> str:
    tokenizer = checkpoint().tokenizer
    ids = tokenizer.encode_prompt(page.plan, prompt_for(Task.FREE))
    out = checkpoint().model.generate(
        torch.tensor([ids]),
        global_views_BHWC=torch.from_numpy(page.global_view_HWC)[None],
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return tokenizer.decode(out[0, len(ids) :].tolist())


def plain() -> TorchEngine:
    return make_engine(checkpoint(), LIMITS)


def paged(weights: WeightForm = WeightForm.FULL) -> TorchEngine:
    limits = replace(LIMITS, weights=weights)
    runner = paged_runner(checkpoint().model, limits, checkpoint().tokenizer.eos_id, block_tokens=64)
    return TorchEngine(runner, checkpoint().tokenizer, plain().info, limits)


def paged_int8() -> TorchEngine:
    """nano ships as 8-bit rows, so nothing is lost by making such rows of it."""
    return paged(WeightForm.INT8)


@needs_nano
@pytest.mark.parametrize("make", [plain, paged, paged_int8])
def test_pages_together_are_read_as_by_generation(make):
    engine, found = make(), {}
    pages = {text: page_of(text) for text in TEXTS}
    for text, page in pages.items():
        engine.submit(SequenceRequest(text, page, prompt_for(Task.FREE), SamplingParams(TOKENS), engine.info.model_id))
        for event in engine.step():
            assert not isinstance(event, SequenceResult)
    for event in drain(engine):
        if isinstance(event, SequenceResult):
            found[event.sequence_id] = event.text
    assert found == {text: generated(page) for text, page in pages.items()}
