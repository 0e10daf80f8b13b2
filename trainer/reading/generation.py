"""Reads pages with the model, greedily and in batches, for evaluations and checks during training.

Loops, second attempts and the end of an answer follow `shared.contract.answer`, as in the service. Needs only torch,
transformers and numpy. Runs in one thread; the model's mode is restored.

Pages of one batch have prompts of equal length (one plan gives one length). So there is no padding and only a causal
mask, and a page's text does not depend on its neighbours, except for rounding.

Shape letters: B pages, L tokens, D decoder width, V vocabulary, H and W pixels, C colours, T tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from shared.contract.answer import AnswerTokens, FinishReason, Rewind, TokenJudge
from shared.contract.confidence import TokenScores, score_tokens
from shared.contract.repetition import FindRows, LoopRule, Rows
from shared.contract.rows import find_rows
from shared.deepseek_ocr.answer_window import answer_window, window_mask
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import ViewPlan
from shared.images.page_ink import InkLine
from trainer.reading.kv_cache import growing_cache

if TYPE_CHECKING:
    from transformers import Cache

    from shared.deepseek_ocr.protocol import OcrModel
    from shared.deepseek_ocr.tokenizer import OcrTokenizer

LOOP_RULE = LoopRule()
"""The service's default, so that a gate counts the loops that users would get."""
STEPS_PER_CHECK = {"cpu": 1}
"""Steps after which the host checks the answers, by type of device."""
STEPS_PER_CHECK_ELSEWHERE = 16
"""On a GPU a check makes the step wait for the host; decoding past an answer's end costs less."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The model's answer for a page."""

    text: str
    num_tokens: int
    """Tokens of the answer, without the end token."""
    finish_reason: FinishReason
    token_scores: TokenScores | None = field(default=None, compare=False)

    @property
    def ended(self) -> bool:
        """Whether the answer ended with the end token; False after a loop or at the limit."""
        return self.finish_reason is FinishReason.STOP


class _Answer:
    """A growing answer, under the same rules as in the service."""

    def __init__(self, eos_id: int, max_new_tokens: int, rows: FindRows | None = None) -> None:
        self.judge = TokenJudge(eos_id, max_new_tokens, LOOP_RULE)
        self.kept = AnswerTokens(LOOP_RULE, rows)
        self.outcome: FinishReason | Rewind | None = None

    def push(self, token_id: int, log_probability: float) -> None:
        """Add a token, unless the outcome is already known."""
        if self.outcome is None:
            status, argument = self.judge.push(token_id)
            self.outcome = self.kept.push(token_id, log_probability, status, argument)


def generate_texts(
    model: OcrModel,
    tokenizer: OcrTokenizer,
    batch: Sequence[PageViews],
    prompt: str,
    max_new_tokens: int,
    device: torch.device | str,
    batch_size: int = 8,
    prints: Sequence[Sequence[InkLine]] | None = None,
) -> list[Generated]:
    """Read pages greedily.

    On a CUDA device matrix products run in bfloat16, whatever the weights' type. The model is in evaluation mode
    meanwhile.

    Args:
        model: Already on `device`.
        tokenizer: Of the same checkpoint.
        batch: Any number of pages, of any plans.
        prompt: Text after the image, the same for all pages.
        max_new_tokens: Limit of an answer's length, end token included.
        device: Of the model.
        batch_size: Largest number of pages decoded together.
        prints: Each page's lines of print, by which true rows are told from loops.

    Returns:
        One reading for each page, in the order of `batch`.

    Raises:
        ValueError: `max_new_tokens` or `batch_size` is below 1.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError("max_new_tokens and batch_size must be at least 1")
    device = torch.device(device)
    readings: dict[int, Generated] = {}
    with inference(model, device):
        for indices in batches_of_equal_plan([page.plan for page in batch], batch_size):
            pages = [batch[index] for index in indices]
            prompt_ids = tokenizer.encode_prompt(pages[0].plan, prompt)
            features = _encode(model, pages, device)
            rows = [_find_rows(tokenizer, prints[index]) if prints else None for index in indices]
            answers = [_Answer(tokenizer.eos_id, max_new_tokens, find) for find in rows]
            _decode(model, features, [prompt_ids] * len(pages), answers, max_new_tokens, device)
            readings.update(zip(indices, _as_texts(answers, tokenizer), strict=True))
    return [readings[index] for index in range(len(batch))]


def generate_from_features(
    model: OcrModel,
    tokenizer: OcrTokenizer,
    prompts: Sequence[Sequence[int]],
    features_of: Callable[[int], Tensor],
    max_new_tokens: int,
    device: torch.device | str,
    batch_size: int = 8,
) -> list[Generated]:
    """Read pages whose vision features are already computed; otherwise the same as `generate_texts`.

    Args:
        model: Already on `device`.
        tokenizer: Of the same checkpoint.
        prompts: Token ids of whole prompts, image tokens included.
        features_of: From a prompt's index to the features `[L, D]` of its images.
        max_new_tokens: Limit of an answer's length, end token included.
        device: Of the model.
        batch_size: Largest number of pages decoded together.

    Returns:
        One reading for each prompt.
    """
    device = torch.device(device)
    readings: dict[int, Generated] = {}
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with inference(model, device):
        for _, group in groupby(by_length, key=lambda index: len(prompts[index])):
            while indices := list(islice(group, batch_size)):
                features = [features_of(index).to(device) for index in indices]
                asked = [prompts[index] for index in indices]
                answers = [_Answer(tokenizer.eos_id, max_new_tokens) for _ in indices]
                _decode(model, features, asked, answers, max_new_tokens, device)
                readings.update(zip(indices, _as_texts(answers, tokenizer), strict=True))
    return [readings[index] for index in range(len(prompts))]


def _find_rows(tokenizer: OcrTokenizer, lines: Sequence[InkLine]) -> FindRows | None:
    if not lines:
        return None

    def rows_like(before: Sequence[int], period: Sequence[int]) -> Rows:
        pieces = tokenizer.token_bytes
        return find_rows([pieces(token) for token in before], [pieces(token) for token in period], lines)

    return rows_like


def batches_of_equal_plan(plans: Sequence[ViewPlan], batch_size: int) -> Iterator[list[int]]:
    """Indices of pages that can be decoded together, shortest prompts first; every index occurs once."""

    def order(index: int) -> tuple[int, int, int, int]:
        plan = plans[index]
        return (plan.num_vision_tokens, plan.tile_columns, plan.tile_rows, plan.global_px)

    for _, group in groupby(sorted(range(len(plans)), key=order), key=order):
        while chunk := list(islice(group, batch_size)):
            yield chunk


@contextmanager
def inference(model: OcrModel, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients and, on CUDA, products in bfloat16 within a block.

    Args:
        model: Its mode is restored.
        device: Of the model.

    Yields:
        Nothing.
    """
    module = cast("torch.nn.Module", model)
    was_training = module.training
    module.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
            _uncompiled(module),
        ):
            yield
    finally:
        module.train(was_training)


def _uncompiled(module: torch.nn.Module) -> AbstractContextManager[object]:
    """Bypass compiled blocks: with a cache that grows by a token a step they would be compiled again and again."""
    if all(part._compiled_call_impl is None for part in module.modules()):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _decode(
    model: OcrModel,
    features: Sequence[Tensor],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[_Answer],
    max_new_tokens: int,
    device: torch.device,
) -> None:
    """Answer prompts of one length; an answer that loops goes on by itself, as in the service."""
    _decode_batch(model, features, prompts, answers, max_new_tokens, device)
    for answer, prompt, feature in zip(answers, prompts, features, strict=True):
        while isinstance(answer.outcome, Rewind):
            answer.judge.rewind(answer.outcome.kept, answer.outcome.forbidden)
            answer.outcome = None
            _decode_again(model, feature, prompt, answer, device)


def _decode_batch(
    model: OcrModel,
    features: Sequence[Tensor],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[_Answer],
    max_new_tokens: int,
    device: torch.device,
) -> None:
    """First attempts, all rows together; rows leave the batch as they end or loop."""
    running = list(answers)
    cache = growing_cache()
    ids_BL = torch.tensor([list(prompt) for prompt in prompts], device=device)
    prompt_tokens = ids_BL.shape[1]
    logits_BV = next_logits(model, model.embed_inputs(ids_BL, features), cache, prompt_tokens)
    steps_per_check = STEPS_PER_CHECK.get(device.type, STEPS_PER_CHECK_ELSEWHERE)
    unseen: list[Tensor] = []
    for step in range(1, max_new_tokens + 1):
        token_B, pair_B2 = _choose(logits_BV)
        unseen.append(pair_B2)
        if step % steps_per_check == 0 or step == max_new_tokens:
            kept = _take(running, unseen)
            unseen = []
            if not kept:
                break
            # Each removal copies the cache, so several rows are removed at once.
            if 4 * len(kept) <= 3 * len(running):
                rows = torch.tensor(kept, device=device)
                cache.batch_select_indices(rows)
                token_B = token_B[rows]
                running = [running[row] for row in kept]
        logits_BV = _step(model, token_B, cache, prompt_tokens)


def _decode_again(
    model: OcrModel, features_LD: Tensor, prompt: Sequence[int], answer: _Answer, device: torch.device
) -> None:
    """After a loop: the kept tokens are part of the prompt, and the guard of a second attempt bans tokens."""
    cache = growing_cache()
    kept_1L = torch.tensor([answer.judge.tokens], device=device, dtype=torch.long)
    # Apart from the prompt: an image token that the model wrote has no features.
    embeds = (
        model.embed_inputs(torch.tensor([list(prompt)], device=device), [features_LD]),
        model.embed_inputs(kept_1L, []),
    )
    logits_1V = next_logits(model, torch.cat(embeds, dim=1), cache, len(prompt))
    while True:
        token_1, pair_12 = _choose(logits_1V, answer.judge.banned())
        _take([answer], [pair_12])
        if answer.outcome is not None:
            return
        logits_1V = _step(model, token_1, cache, len(prompt))


def _choose(logits_BV: Tensor, banned: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """The most probable tokens `[B]`; and tokens with their log probabilities before bans, float64 `[B, 2]`."""
    logs_BV = logits_BV.float().log_softmax(dim=-1)
    scores_BV = logs_BV
    if banned:
        scores_BV = logs_BV.clone()
        scores_BV[:, list(banned)] = float("-inf")
    token_B = scores_BV.argmax(dim=-1)
    return token_B, torch.stack((token_B.double(), logs_BV.gather(1, token_B[:, None])[:, 0].double()), dim=1)


def _take(running: Sequence[_Answer], unseen: Sequence[Tensor]) -> list[int]:
    """Add new tokens to their answers; return the rows whose answers go on."""
    for row, pairs in enumerate(torch.stack(list(unseen), dim=1).tolist()):
        for token_id, log_probability in pairs:
            running[row].push(int(token_id), log_probability)
    return [row for row, answer in enumerate(running) if answer.outcome is None]


def _encode(model: OcrModel, pages: Sequence[PageViews], device: torch.device) -> list[Tensor]:
    """Vision features `[L, D]` of pages with one plan."""
    plan = pages[0].plan
    tiles = [torch.as_tensor(page.tiles_THWC) for page in pages] if plan.num_tiles else []
    return model.image_features(
        torch.stack([torch.as_tensor(page.global_view_HWC) for page in pages]).to(device),
        torch.cat(tiles).to(device) if tiles else None,
        [(plan.tile_columns, plan.tile_rows)] * len(pages),
    )


def _as_texts(answers: Sequence[_Answer], tokenizer: OcrTokenizer) -> list[Generated]:
    texts = []
    for answer in answers:
        assert isinstance(answer.outcome, FinishReason)
        tokens = list(answer.kept.tokens)
        scores = score_tokens(map(tokenizer.token_bytes, tokens), answer.kept.log_probabilities)
        texts.append(Generated(tokenizer.decode(tokens), len(tokens), answer.outcome, scores))
    return texts


def _step(model: OcrModel, token_B: Tensor, cache: Cache, prompt_tokens: int) -> Tensor:
    """Logits `[B, V]` after one more token."""
    return next_logits(model, model.embed_inputs(token_B[:, None], []), cache, prompt_tokens)


def next_logits(model: OcrModel, embeds_BLD: Tensor, cache: Cache, prompt_tokens: int) -> Tensor:
    """Logits `[B, V]` after more tokens of the sequences in a cache, whose first `prompt_tokens` are the prompt."""
    seen, num_new = cache.get_seq_length(), embeds_BLD.shape[1]
    position_ids = torch.arange(seen, seen + num_new, device=embeds_BLD.device)[None]
    window, mask = answer_window(model), None
    if window is not None and seen + num_new > prompt_tokens:
        mask = window_mask(seen, num_new, prompt_tokens, window, embeds_BLD.device)
    hidden_BLD, _ = model.decode(embeds_BLD, position_ids, mask, cache)
    logits_BV: Tensor = model.lm_head(hidden_BLD[:, -1])
    return logits_BV
