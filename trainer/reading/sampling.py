"""Several answers to each prompt, drawn by chance, for training by rewards.

Unlike `trainer.reading.generation`, an answer that loops gets no second attempt: it ends where the loop is seen, so
that a reward can count it. Draws from torch's generator of the device, which checkpoints of a run restore.

Shape letters: B answers in work, L tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.contract.answer import FinishReason, TokenJudge, TokenStatus
from shared.deepseek_ocr.answer_window import answer_window
from shared.deepseek_ocr.registry import kind_of
from trainer.reading.generation import (
    LOOP_RULE,
    STEPS_PER_CHECK,
    STEPS_PER_CHECK_ELSEWHERE,
    inference,
    next_logits,
)
from trainer.reading.kv_cache import growing_cache
from trainer.reading.step_program import StepPrograms, draw_tokens

if TYPE_CHECKING:
    from shared.deepseek_ocr.protocol import OcrModel
    from shared.deepseek_ocr.tokenizer import OcrTokenizer

PROMPTS_AT_ONCE = 32
"""Prompts read together; their answers are decoded all together."""
_REASONS = {
    TokenStatus.STOP: FinishReason.STOP,
    TokenStatus.LENGTH: FinishReason.LENGTH,
    TokenStatus.LOOP: FinishReason.REPETITION,
}


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    """An answer as it was drawn.

    Attributes:
        tokens: with the end token, if it has one.
        text: without.
        finish_reason: how it ended.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        num_answers: to each prompt.
        temperature: above 0; logits are divided by it.
        max_new_tokens: limit of an answer's length, end token included.
    """

    num_answers: int
    temperature: float
    max_new_tokens: int


def draw_answers(
    model: OcrModel,
    tokenizer: OcrTokenizer,
    prompts: Sequence[Sequence[int]],
    features_of: Callable[[int], Tensor],
    sampling: Sampling,
    device: torch.device,
    programs: StepPrograms | None = None,
) -> list[list[DrawnAnswer]]:
    """Answer each prompt several times.

    Args:
        model: Already on `device`.
        tokenizer: Of the same checkpoint.
        prompts: Token ids of whole prompts, image tokens included.
        features_of: From a prompt's index to the features `[L, D]` of its images.
        sampling: Number, temperature and limit.
        device: Of the model.
        programs: Decode all prompts together, in steps that are recorded on a GPU; for models that `can_be_recorded`.
            None: prompts of one length together, and rows leave the batch as they end, which is faster on a CPU.

    Returns:
        The answers to each prompt.
    """
    if programs is not None:
        return _draw_recorded(model, tokenizer, prompts, features_of, sampling, device, programs)
    answers: dict[int, list[DrawnAnswer]] = {}
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with inference(model, device):
        for _, group in groupby(by_length, key=lambda index: len(prompts[index])):
            indices = list(group)
            features = [features_of(index).to(device) for index in indices]
            judges = _draw(model, tokenizer, [prompts[index] for index in indices], features, sampling, device)
            drawn = iter(judges)
            answers |= {
                index: [_as_answer(*next(drawn), tokenizer) for _ in range(sampling.num_answers)] for index in indices
            }
    return [answers[index] for index in range(len(prompts))]


def _draw(
    model: OcrModel,
    tokenizer: OcrTokenizer,
    prompts: Sequence[Sequence[int]],
    features: Sequence[Tensor],
    sampling: Sampling,
    device: torch.device,
) -> list[tuple[TokenJudge, TokenStatus]]:
    """Answers to prompts of one length, those of a prompt one after another."""
    count = len(prompts) * sampling.num_answers
    judges = [TokenJudge(tokenizer.eos_id, sampling.max_new_tokens, LOOP_RULE) for _ in range(count)]
    outcomes = [TokenStatus.RUN] * count
    running = list(range(count))
    cache = growing_cache()
    ids_BL = torch.tensor([list(prompt) for prompt in prompts], device=device)
    prompt_tokens = ids_BL.shape[1]
    logits_BV = next_logits(model, model.embed_inputs(ids_BL, features), cache, prompt_tokens)
    # A prompt is read once, however often it is answered.
    cache.batch_repeat_interleave(sampling.num_answers)
    logits_BV = logits_BV.repeat_interleave(sampling.num_answers, dim=0)
    per_check = STEPS_PER_CHECK.get(device.type, STEPS_PER_CHECK_ELSEWHERE)
    unseen: list[Tensor] = []
    for step in range(1, sampling.max_new_tokens + 1):
        token_B = draw_tokens(logits_BV, sampling.temperature)
        unseen.append(token_B)
        if step % per_check == 0 or step == sampling.max_new_tokens:
            for row, tokens in zip(running, torch.stack(unseen, dim=1).tolist(), strict=True):
                for token in tokens:
                    if outcomes[row] is TokenStatus.RUN:
                        outcomes[row], _ = judges[row].push(token)
            unseen = []
            kept = [place for place, row in enumerate(running) if outcomes[row] is TokenStatus.RUN]
            if not kept:
                break
            if 4 * len(kept) <= 3 * len(running):  # a removal copies the cache
                places = torch.tensor(kept, device=device)
                cache.batch_select_indices(places)
                token_B = token_B[places]
                running = [running[place] for place in kept]
        logits_BV = next_logits(model, model.embed_inputs(token_B[:, None], []), cache, prompt_tokens)
    return list(zip(judges, outcomes, strict=True))


def can_be_recorded(model: OcrModel) -> bool:
    """Whether a model has the decoder that `StepPrograms` need."""
    return kind_of(model).has_fast_decoder and answer_window(model) is None


def _draw_recorded(
    model: OcrModel,
    tokenizer: OcrTokenizer,
    prompts: Sequence[Sequence[int]],
    features_of: Callable[[int], Tensor],
    sampling: Sampling,
    device: torch.device,
    programs: StepPrograms,
) -> list[list[DrawnAnswer]]:
    times, longest = sampling.num_answers, max(map(len, prompts))
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with inference(model, device):
        program = programs.of(model, len(prompts) * times, longest, sampling.max_new_tokens, sampling.temperature)
        logits: list[Tensor] = []
        for length, group in groupby(by_length, key=lambda index: len(prompts[index])):
            indices = list(group)
            for start in range(0, len(indices), PROMPTS_AT_ONCE):
                chunk = indices[start : start + PROMPTS_AT_ONCE]
                cache = growing_cache()
                ids_BL = torch.tensor([list(prompts[index]) for index in chunk], device=device)
                embeds = model.embed_inputs(ids_BL, [features_of(index).to(device) for index in chunk])
                first = sum(map(len, logits))
                logits.append(next_logits(model, embeds, cache, length).repeat_interleave(times, dim=0))
                rows = slice(first, first + len(chunk) * times)
                program.cache.fill(rows, cache, times, program.num_tokens)
        lengths = [len(prompts[index]) for index in by_length for _ in range(times)]
        program.begin(torch.cat(logits), lengths)
        judges = [TokenJudge(tokenizer.eos_id, sampling.max_new_tokens, LOOP_RULE) for _ in lengths]
        outcomes = [TokenStatus.RUN] * len(lengths)
        per_check = STEPS_PER_CHECK.get(device.type, STEPS_PER_CHECK_ELSEWHERE)
        seen, drawn = 0, 1
        while True:
            for row, tokens in enumerate(program.drawn_BS[:, seen:drawn].tolist()):
                for token in tokens:
                    if outcomes[row] is TokenStatus.RUN:
                        outcomes[row], _ = judges[row].push(token)
            if TokenStatus.RUN not in outcomes:
                break
            steps = min(per_check, sampling.max_new_tokens - drawn)
            program.advance(steps)
            seen, drawn = drawn, drawn + steps
    finished = iter(zip(judges, outcomes, strict=True))
    answers = {index: [_as_answer(*next(finished), tokenizer) for _ in range(times)] for index in by_length}
    return [answers[index] for index in range(len(prompts))]


def _as_answer(judge: TokenJudge, status: TokenStatus, tokenizer: OcrTokenizer) -> DrawnAnswer:
    end = (tokenizer.eos_id,) if status is TokenStatus.STOP else ()
    return DrawnAnswer((*judge.tokens, *end), tokenizer.decode(judge.tokens), _REASONS[status])
