"""Answers drawn by chance: as many as asked for, ended where they should, with the model's own probabilities."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from shared.contract.answer import FinishReason
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.reading.sampling import Sampling, draw_answers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn():
    """Twelve answers to each of three prompts of two lengths."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    width = model.config.text_config.hidden_size
    prompts = [[tokenizer.bos_id, *[tokenizer.image_id] * count, 40, 41] for count in (3, 4, 3)]
    features = [torch.randn(count, width, generator=torch.Generator().manual_seed(count)) for count in (3, 4, 3)]
    torch.manual_seed(0)
    return draw_answers(model, tokenizer, prompts, features.__getitem__, Sampling(12, 1.0, 9), CPU)


def test_every_prompt_gets_its_number_of_answers_and_they_differ(drawn):
    assert [len(answers) for answers in drawn] == [12, 12, 12]
    assert len({answer.tokens for answers in drawn for answer in answers}) > 30


def test_an_answer_ends_with_the_end_token_or_at_the_limit(drawn):
    for answer in (answer for answers in drawn for answer in answers):
        has_end = answer.tokens[-1] == tiny_tokenizer().eos_id
        assert has_end is (answer.finish_reason is FinishReason.STOP)
        assert len(answer.tokens) <= 10
        assert tiny_tokenizer().eos_id not in answer.tokens[:-1]


def test_first_tokens_are_drawn_with_the_models_probabilities():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt, features = [tokenizer.bos_id, tokenizer.image_id, 41], torch.ones(1, 32)
    torch.manual_seed(0)
    (answers,) = draw_answers(model, tokenizer, [prompt], lambda _: features, Sampling(4000, 0.5, 1), CPU)
    counts = Counter(answer.tokens[0] for answer in answers)
    with torch.no_grad():
        embeds = model.embed_inputs(torch.tensor([prompt]), [features])
        shares = (model(inputs_embeds=embeds).logits[0, -1] / 0.5).softmax(-1)
    for token, count in counts.most_common(3):
        assert count / 4000 == pytest.approx(float(shares[token]), abs=0.03)
