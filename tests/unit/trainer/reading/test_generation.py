"""Greedy decoding in batches: the same tokens as without batch and cache, and every way to end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch

from shared.contract.answer import FinishReason
from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import Mode, plan_views
from tests.support.tiny_model import SIDE_PX, TINY_GEOMETRY, tiny_model, tiny_tokenizer
from trainer.reading.generation import LOOP_RULE, Generated, batches_of_equal_plan, generate_texts

PROMPT = "\nFree OCR."
END = 1

if TYPE_CHECKING:
    from shared.deepseek_ocr.protocol import OcrModel


def noise_page(width: int, height: int, seed: int) -> PageViews:
    plan = plan_views(width, height, Mode.GUNDAM, TINY_GEOMETRY)
    rng = np.random.default_rng(seed)
    return PageViews(
        plan,
        rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8),
        rng.integers(0, 256, (plan.num_tiles, SIDE_PX, SIDE_PX, 3), np.uint8),
    )


def slow_reading(model, tokenizer, page: PageViews, steps: int) -> list[int]:
    """The whole sequence anew for every token, alone, without a cache."""
    ids = tokenizer.encode_prompt(page.plan, PROMPT)
    start = len(ids)
    tiles = torch.from_numpy(page.tiles_THWC) if page.plan.num_tiles else None
    for _ in range(steps):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                global_views_BHWC=torch.from_numpy(page.global_view_HWC)[None],
                tiles_THWC=tiles,
                tile_grids_B2=[(page.plan.tile_columns, page.plan.tile_rows)],
            ).logits
        token = int(logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return ids[start:]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pages_of_mixed_plans_read_as_if_alone_and_without_a_cache(batch_size):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    sizes = [(60, 30), (120, 60), (50, 50), (120, 60), (60, 180), (64, 64)]
    pages = [noise_page(*size, seed) for seed, size in enumerate(sizes)]
    assert len({page.plan for page in pages}) == 3
    readings = generate_texts(model, tokenizer, pages, PROMPT, 20, "cpu", batch_size)
    expected = [slow_reading(model, tokenizer, page, 20) for page in pages]
    assert [reading.text for reading in readings] == [tokenizer.decode(ids) for ids in expected]
    assert [reading.num_tokens for reading in readings] == [len(ids) for ids in expected]


class ScriptedModel(torch.nn.Module):
    """Reads the number in a page's first pixel and answers with that script, then ends.

    The number travels in the cache, so an answer is right only while rows and cache stay together.
    """

    def __init__(self, scripts: dict[int, list[int]], vocab_size: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(text_config=TextConfig())
        self.scripts = scripts
        self.vocab_size = vocab_size
        self.batches: list[int] = []
        self.prompt_len = 0

    def image_features(self, global_views_BHWC, tiles_THWC, tile_grids_B2):
        return [view[0, 0, :1].float() for view in global_views_BHWC]

    def embed_inputs(self, input_ids, features):
        embeds = torch.zeros(*input_ids.shape, 1, device=input_ids.device)
        if features:
            self.prompt_len = input_ids.shape[1]
            embeds[:, 0, 0] = torch.cat(features)
        return embeds

    def decode(self, embeds_BLD, position_ids_BL, mask, cache):
        self.batches.append(len(embeds_BLD))
        seen, _ = cache.update(embeds_BLD[:, None], embeds_BLD[:, None], 0)
        assert position_ids_BL[0, -1] == seen.shape[2] - 1
        logits = torch.zeros(len(embeds_BLD), 1, self.vocab_size, device=embeds_BLD.device)
        for row, number in enumerate(seen[:, 0, 0, 0].int().tolist()):
            script = [*self.scripts[number], END]
            logits[row, 0, script[min(seen.shape[2] - self.prompt_len, len(script) - 1)]] = 1.0
        return logits, None

    def lm_head(self, hidden):
        return hidden


def scripted(*lengths: int, max_new_tokens: int = 400, batch_size: int = 8, device: str = "cpu"):
    """Answers of unlike tokens, of given lengths, through a scripted model."""
    scripts = {number: [20 + (index * 7 + number) % 200 for index in range(n)] for number, n in enumerate(lengths)}
    pages = []
    for number in scripts:
        page = noise_page(60, 30, number)
        page.global_view_HWC[:] = number
        pages.append(page)
    model = ScriptedModel(scripts, 300)
    readings = generate_texts(
        cast("OcrModel", model), tiny_tokenizer(), pages, PROMPT, max_new_tokens, device, batch_size
    )
    expected = [tiny_tokenizer().decode(script) for script in scripts.values()]
    return model, readings, expected


def test_every_page_gets_its_own_answer_however_the_batch_shrinks():
    model, readings, expected = scripted(3, 90, 0, 41, 7, 300, 1, 12)
    assert [reading.text for reading in readings] == expected
    assert [reading.num_tokens for reading in readings] == [3, 90, 0, 41, 7, 300, 1, 12]
    assert all(reading.ended for reading in readings)
    assert model.batches[0] == 8
    assert model.batches[-1] == 1
    assert len(model.batches) == 301


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_looking_seldom_changes_no_answer(device, monkeypatch):
    monkeypatch.setattr("trainer.reading.generation.STEPS_PER_CHECK", {})
    model, readings, expected = scripted(3, 90, 0, 41, 16, 17, 250, 15, max_new_tokens=200, device=device)
    expected[6] = tiny_tokenizer().decode([20 + (index * 7 + 6) % 200 for index in range(200)])
    assert [reading.text for reading in readings] == expected
    assert [reading.ended for reading in readings] == [True] * 6 + [False, True]
    assert len(model.batches) == 200


def test_pages_beyond_a_batch_are_read_in_another_one():
    model, readings, expected = scripted(5, 5, 5, batch_size=2)
    assert [reading.text for reading in readings] == expected
    assert sorted(set(model.batches)) == [1, 2]


def test_an_answer_at_the_limit_is_not_ended():
    _, readings, _ = scripted(5, 4, 9, max_new_tokens=5)
    assert [(reading.num_tokens, reading.ended) for reading in readings] == [(5, False), (4, True), (5, False)]


def read_script(script: list[int]) -> Generated:
    page = noise_page(60, 30, 0)
    page.global_view_HWC[:] = 0
    model = cast("OcrModel", ScriptedModel({0: script}, 300))
    (reading,) = generate_texts(model, tiny_tokenizer(), [page], PROMPT, 1000, "cpu")
    return reading


@pytest.mark.parametrize("period", [3, 40])
def test_a_loop_of_any_period_that_the_service_knows_is_left(period):
    unit = list(range(50, 50 + period))
    reading = read_script(unit * 500)
    assert reading.text.startswith(tiny_tokenizer().decode(unit))
    assert reading.num_tokens < LOOP_RULE.min_tokens


def test_rows_that_repeat_less_than_the_served_rule_asks_for_are_read_to_their_end():
    script = [50, 51, 52] * 50
    reading = read_script(script)
    assert reading == Generated(tiny_tokenizer().decode(script), 150, FinishReason.STOP)


def test_batches_hold_one_plan_each_shortest_first_and_every_page_once():
    plans = [noise_page(*size, 0).plan for size in [(120, 60), (60, 30), (120, 60), (50, 50), (60, 60), (120, 60)]]
    batches = list(batches_of_equal_plan(plans, 2))
    assert batches == [[1, 3], [4], [0, 2], [5]]


def test_compiled_blocks_are_left_aside():
    model = tiny_model()
    page = noise_page(60, 30, 0)
    expected = generate_texts(model, tiny_tokenizer(), [page], PROMPT, 6, "cpu")

    def fail(*_, **__):
        raise AssertionError("the compiled block was called")

    for layer in model.model.layers:
        layer.compile(backend=fail)
    assert generate_texts(model, tiny_tokenizer(), [page], PROMPT, 6, "cpu") == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training):
    model = tiny_model()
    model.train(training)
    generate_texts(model, tiny_tokenizer(), [noise_page(60, 30, 0)], PROMPT, 2, "cpu")
    assert model.training is training


def test_no_pages_give_no_readings_and_no_tokens_are_refused():
    assert generate_texts(tiny_model(), tiny_tokenizer(), [], PROMPT, 5, "cpu") == []
    with pytest.raises(ValueError, match="at least 1"):
        generate_texts(tiny_model(), tiny_tokenizer(), [], PROMPT, 0, "cpu")
