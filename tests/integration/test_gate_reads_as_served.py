"""What the publish gate measures is what the service serves: the same texts and the same ends, loops included."""

import asyncio

import numpy as np
import pytest
from PIL import ImageDraw

from service.engine.config import EngineLimits
from service.intake.decoding import OpenDocument
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.ocr.line_reading import read_lines as serve_lines
from shared.contract.answer import FinishReason
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import Mode, plan_views
from shared.deepseek_ocr.images import prepare_views
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from tests.support.printed import LEFT, page_of
from tests.unit.service.engine.test_engine import looping_model, outcomes
from tests.unit.service.engine.tiny import (
    PROMPT,
    drain,
    tiny_engine,
    tiny_model,
    tiny_page,
    tiny_request,
    tiny_tokenizer,
)
from tests.unit.service.ocr.test_line_reading import LARGER, Reader, enlarged, strips_of
from trainer.evaluation.samples import Layout, Sample
from trainer.reading.generation import LOOP_RULE, Generated, generate_texts
from trainer.reading.lines import read_lines
from trainer.reading.model import ModelReader, ReadingOptions

pytestmark = pytest.mark.integration
RULE = LoopRule(min_tokens=12, min_repeats=3)


def windowed_model():
    """Its answers see a part of themselves alone."""
    model = tiny_model()
    model.config.text_config.answer_window = 8
    return model


def windowed_looping_model():
    model = looping_model()
    model.config.text_config.answer_window = 8
    return model


@pytest.mark.parametrize("make_model", [tiny_model, looping_model, windowed_model, windowed_looping_model])
def test_the_trainer_reads_as_the_engine_does(make_model, monkeypatch):
    monkeypatch.setattr("trainer.reading.generation.LOOP_RULE", RULE)
    model = make_model()
    pages: list[PageViews] = [tiny_page(seed, width_px) for seed in range(4) for width_px in (64, 128)]
    read = generate_texts(model, tiny_tokenizer(), pages, PROMPT, 100, "cpu", 3)
    engine = tiny_engine(model, loop_rule=RULE, max_new_tokens=100, max_sequence_tokens=400)
    for number, page in enumerate(pages):
        engine.submit(tiny_request(str(number), page=page, max_new_tokens=100))
    served = outcomes(drain(engine))
    assert [(reading.text, reading.num_tokens, reading.finish_reason) for reading in read] == [
        (served[str(number)].text, served[str(number)].completion_tokens, served[str(number)].finish_reason)
        for number in range(len(pages))
    ]
    if make_model in (looping_model, windowed_looping_model):
        assert {reading.finish_reason for reading in read} == {"repetition"}


def test_the_rules_are_the_same_by_default():
    assert EngineLimits().loop_rule == LOOP_RULE


@pytest.mark.parametrize("tilt", [0, 5])
@pytest.mark.parametrize("has_frame", [False, True])
def test_a_crop_is_shown_to_the_model_as_the_service_shows_it(tmp_path, tilt, has_frame):
    crop = page_of((60, 60, LEFT), size=(600, 400))
    if has_frame:
        ImageDraw.Draw(crop).rectangle((40, 48, 520, 104), outline="black", width=2)
    crop = crop.rotate(tilt, fillcolor="white")
    crop.save(tmp_path / "crop.png")
    options = ReadingOptions(mode=Mode.SMALL)
    reader = ModelReader(tiny_model(), tiny_tokenizer(), NANO_GEOMETRY, "nano", options)
    image = reader._open(Sample("crop", "line", Layout.BLOCK, tmp_path / "crop.png", ""))
    plan = plan_views(*image.size, Mode.SMALL, NANO_GEOMETRY)
    data = (tmp_path / "crop.png").read_bytes()
    task = DecodeTask(1, Mode.SMALL, NANO_GEOMETRY, turn_degrees=None, lines_from_views=2)
    served = OpenDocument(Document(data, IntakeLimits())).decode(task).prepared
    read = reader._whole(image, plan)
    assert all(np.array_equal(one, other) for one, other in zip(read.arrays, served.arrays, strict=True))
    plain = PageViews(plan, *prepare_views(crop, plan, NANO_GEOMETRY))
    is_as_it_was = all(np.array_equal(one, other) for one, other in zip(read.arrays, plain.arrays, strict=True))
    assert is_as_it_was is (not tilt and not has_frame)


@pytest.mark.parametrize("num_unsure", [0, 3, 24])
def test_a_page_is_read_by_its_lines_as_it_is_served(num_unsure):
    def answer(numbers):
        if numbers[0] >= LARGER:
            return "\n".join("line again" for _ in numbers), FinishReason.STOP
        return "\n".join(("blurred" if n < num_unsure else "line") + f" {n}" for n in numbers), FinishReason.STOP

    reader = Reader(answer)

    def generated(views):
        results = [asyncio.run(reader(view, 4000)) for view in views]
        return [Generated(one.text, one.completion_tokens, one.finish_reason, one.token_scores) for one in results]

    async def enlarge():
        return enlarged(24)

    read = read_lines(strips_of(24), NANO_GEOMETRY, generated, lambda: enlarged(24))
    served = asyncio.run(serve_lines(strips_of(24), NANO_GEOMETRY, None, reader, enlarge=enlarge)).result
    assert (read.text, read.token_scores) == (served.text, served.token_scores)
    assert read.text.count("again") == (2 if num_unsure == 3 else 0)
