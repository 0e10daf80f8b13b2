"""What the publish gate measures is what the service serves: the same texts and the same ends, loops included."""

import pytest

from service.engine.config import EngineLimits
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.forms import PageViews
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
from trainer.reading.generation import LOOP_RULE, generate_texts

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
