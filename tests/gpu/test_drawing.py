"""Answers drawn in recorded steps are those of steps one by one, also after the adapter has changed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.reading.sampling import Sampling, draw_answers
from trainer.reading.step_program import StepPrograms

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")


def tokens_of(model, programs, seed):
    tokenizer = tiny_tokenizer()
    prompts = [[tokenizer.bos_id, *[tokenizer.image_id] * count, 40] for count in (3, 5, 4)]
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(count, 32, generator=generator) for count in (3, 5, 4)]
    drawn = draw_answers(model, tokenizer, prompts, features.__getitem__, Sampling(4, 1e-6, 24), DEVICE, programs)
    return [[answer.tokens for answer in answers] for answers in drawn]


def test_recorded_steps_draw_what_steps_one_by_one_draw(monkeypatch):
    # Chance decides between equal logits, which bfloat16 often gives: the likeliest token is taken instead.
    monkeypatch.setattr("trainer.reading.step_program.draw_tokens", lambda logits_BV, _: logits_BV.argmax(dim=-1))
    base = tiny_model().to(DEVICE)
    base.set_moe_implementation("stacked")
    wrapped = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model, recorded = wrapped.get_base_model(), StepPrograms()
    for update in range(3):
        plain = StepPrograms()
        program = plain.of(model, 12, 7, 24, 1e-6)
        program._is_recordable = False
        expected = tokens_of(model, plain, update)
        assert tokens_of(model, recorded, update) == expected
        assert recorded.of(model, 12, 7, 24, 1e-6)._graph is not None
        with torch.no_grad():
            for name, each in wrapped.named_parameters():
                if ".lora_B." in name:  # as an optimiser does: in place
                    each.mul_(-1.5)


def test_recorded_draws_differ_from_each_other_and_follow_the_seed():
    model = tiny_model().to(DEVICE)
    model.set_moe_implementation("stacked")
    tokenizer, programs = tiny_tokenizer(), StepPrograms()
    prompt, features = [tokenizer.bos_id, tokenizer.image_id, 40], torch.ones(1, 32)

    def draw():
        sampling = Sampling(64, 1.0, 12)
        (answers,) = draw_answers(model, tokenizer, [prompt], lambda _: features, sampling, DEVICE, programs)
        return [answer.tokens for answer in answers]

    draw()  # records
    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw() == first
    assert first != second
    assert len(set(first)) > 32
