"""Answers drawn by chance: as many as asked for, ended where they should, with the model's own probabilities."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from shared.contract.answer import FinishReason
from shared.deepseek_ocr.moe import Experts
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.reading.generation import generate_from_features
from trainer.reading.sampling import Sampling, can_be_recorded, draw_answers
from trainer.reading.step_program import MAX_PROGRAMS, StepPrograms, recordable_experts

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[None, StepPrograms()], ids=["shrinking", "recorded"])
def drawn(request):
    """Twelve answers to each of three prompts of two lengths."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    width = model.config.text_config.hidden_size
    prompts = [[tokenizer.bos_id, *[tokenizer.image_id] * count, 40, 41] for count in (3, 4, 3)]
    features = [torch.randn(count, width, generator=torch.Generator().manual_seed(count)) for count in (3, 4, 3)]
    torch.manual_seed(0)
    return draw_answers(model, tokenizer, prompts, features.__getitem__, Sampling(12, 1.0, 9), CPU, request.param)


def test_every_prompt_gets_its_number_of_answers_and_they_differ(drawn):
    assert [len(answers) for answers in drawn] == [12, 12, 12]
    assert len({answer.tokens for answers in drawn for answer in answers}) > 30


def test_an_answer_ends_with_the_end_token_or_at_the_limit(drawn):
    for answer in (answer for answers in drawn for answer in answers):
        has_end = answer.tokens[-1] == tiny_tokenizer().eos_id
        assert has_end is (answer.finish_reason is FinishReason.STOP)
        assert len(answer.tokens) <= 10
        assert tiny_tokenizer().eos_id not in answer.tokens[:-1]


@pytest.mark.parametrize("programs", [None, StepPrograms()], ids=["shrinking", "recorded"])
def test_first_tokens_are_drawn_with_the_models_probabilities(programs):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt, features = [tokenizer.bos_id, tokenizer.image_id, 41], torch.ones(1, 32)
    torch.manual_seed(0)
    (answers,) = draw_answers(model, tokenizer, [prompt], lambda _: features, Sampling(4000, 0.5, 1), CPU, programs)
    counts = Counter(answer.tokens[0] for answer in answers)
    with torch.no_grad():
        embeds = model.embed_inputs(torch.tensor([prompt]), [features])
        shares = (model(inputs_embeds=embeds).logits[0, -1] / 0.5).softmax(-1)
    for token, count in counts.most_common(3):
        assert count / 4000 == pytest.approx(float(shares[token]), abs=0.03)


def test_at_no_temperature_both_ways_write_what_greedy_reading_writes():
    """Prompts of several lengths, used again with other pages: nothing is left over in buffers."""
    model, tokenizer, programs = tiny_model(), tiny_tokenizer(), StepPrograms()
    assert can_be_recorded(model)
    for seed in (0, 1):
        counts = (3, 5, 4, 5)
        prompts = [[tokenizer.bos_id, *[tokenizer.image_id] * count, 40] for count in counts]
        generator = torch.Generator().manual_seed(seed)
        features = [torch.randn(count, 32, generator=generator) for count in counts]
        greedy = generate_from_features(model, tokenizer, prompts, features.__getitem__, 8, CPU)
        for way in (None, programs):
            drawn = draw_answers(model, tokenizer, prompts, features.__getitem__, Sampling(2, 1e-6, 8), CPU, way)
            for answers, expected in zip(drawn, greedy, strict=True):
                assert answers[0] == answers[1]
                assert answers[0].text == expected.text
                assert answers[0].finish_reason is expected.finish_reason


def test_programs_of_few_shapes_are_kept():
    model, programs = tiny_model(), StepPrograms()
    first = programs.of(model, 4, 5, 6, 1.0)
    for count in range(1, MAX_PROGRAMS):
        programs.of(model, 4 + count, 5, 6, 1.0)
    assert programs.of(model, 4, 5, 6, 1.0) is first
    programs.of(model, 99, 5, 6, 1.0)
    programs.of(model, 98, 5, 6, 1.0)
    assert programs.of(model, 4, 5, 6, 1.0) is first
    assert programs.of(tiny_model(1), 4, 5, 6, 1.0) is not first


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("cuda", torch.float32, "dense"), ("cuda", torch.bfloat16, "stacked"), ("cpu", torch.float32, "stacked")],
)
def test_experts_that_read_on_the_host_are_computed_in_full_while_steps_are_recorded(device, dtype, expected):
    model = tiny_model().to(dtype)
    model.set_moe_implementation("stacked")

    def implementations():
        return {module.implementation for module in model.modules() if isinstance(module, Experts)}

    with recordable_experts(model, torch.device(device)):
        assert implementations() == {expected}
    assert implementations() == {"stacked"}
