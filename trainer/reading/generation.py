"""Reading pages with the model, greedily and in batches: what evaluation and in-training checks share.

Owns the decode loop. Needs torch, transformers and numpy alone, so that it runs wherever the model does. Knows nothing
of files, scores or training. One thread runs it; it never leaves the model in another mode than it found it in.

Pages of one batch have prompts of equal length (one plan gives one length), so nothing is padded and nothing but
causality is masked: a page's text does not depend on its neighbours beyond rounding.

Shape letters: B pages, L tokens, D decoder width, V vocabulary, H and W pixels, C colours, T tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.deepseek_ocr.geometry import ViewPlan
from trainer.reading.kv_cache import growing_cache

if TYPE_CHECKING:
    from transformers import Cache

    from shared.deepseek_ocr.protocol import OcrModel
    from shared.deepseek_ocr.tokenizer import OcrTokenizer

LOOP_TOKENS = 120
"""A tail this long that only repeats is a loop; rules and leaders on real pages stay far below it."""
LOOP_MAX_PERIOD = 24
"""Longest repeated unit looked for, in tokens; `LOOP_TOKENS` holds at least five of them."""
STEPS_PER_CHECK = {"cpu": 1}
"""How often the host looks at the answers, by type of device."""
STEPS_PER_CHECK_ELSEWHERE = 16
"""On a GPU looking makes the step wait for the host; what is decoded past an answer's end costs less."""


@dataclass(frozen=True, slots=True)
class PreparedViews:
    """One page as the encoder takes it.

    Shapes:
        global_view_HWC: uint8 RGB, `[plan.global_px, plan.global_px, 3]`
        tiles_THWC: uint8 RGB, `[plan.num_tiles, plan.tile_px, plan.tile_px, 3]`
    """

    plan: ViewPlan
    global_view_HWC: NDArray[np.uint8]
    tiles_THWC: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Generated:
    """What the model read."""

    text: str
    num_tokens: int
    """Tokens of the answer, the end token not among them."""
    ended: bool
    """Whether the model ended its answer itself; False after a loop or at the limit."""


@dataclass(slots=True)
class _Answer:
    """A growing answer."""

    token_ids: list[int] = field(default_factory=list)
    ended: bool = False
    looped: bool = False

    @property
    def is_done(self) -> bool:
        return self.ended or self.looped

    def push(self, token_id: int, eos_id: int) -> None:
        """Take one more token, unless the answer is done already."""
        if self.is_done:
            return
        if token_id == eos_id:
            self.ended = True
            return
        self.token_ids.append(token_id)
        self.looped = repeats_itself(self.token_ids)


def generate_texts(
    model: OcrModel,
    tokenizer: OcrTokenizer,
    batch: Sequence[PreparedViews],
    prompt: str,
    max_new_tokens: int,
    device: torch.device | str,
    batch_size: int = 8,
) -> list[Generated]:
    """Read pages greedily.

    On a CUDA device matrix products run in bfloat16, whatever the weights' type. The model is put into evaluation mode
    and back.

    Args:
        model: The model, on `device` already.
        tokenizer: Its tokenizer.
        batch: Pages, any number, of any plans.
        prompt: Text after the image, the same for all.
        max_new_tokens: Longest answer, the end token included.
        device: Where the model is.
        batch_size: Most pages decoded together.

    Returns:
        One reading for each page, in the order of `batch`.

    Raises:
        ValueError: `max_new_tokens` or `batch_size` is below 1.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError("max_new_tokens and batch_size must be at least 1")
    device = torch.device(device)
    readings: dict[int, Generated] = {}
    with _inference(model, device):
        for indices in batches_of_equal_plan([page.plan for page in batch], batch_size):
            pages = [batch[index] for index in indices]
            prompt_ids = tokenizer.encode_prompt(pages[0].plan, prompt)
            features = _encode(model, pages, device)
            answers = _decode(model, features, [prompt_ids] * len(pages), max_new_tokens, tokenizer.eos_id, device)
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
    """Read pages whose vision features are at hand already; otherwise as `generate_texts`.

    Args:
        model: The model, on `device` already.
        tokenizer: Its tokenizer.
        prompts: Whole sequences to answer, image tokens included.
        features_of: Gives the features `[L, D]` of a prompt's images by the prompt's number.
        max_new_tokens: Longest answer, the end token included.
        device: Where the model is.
        batch_size: Most pages decoded together.

    Returns:
        One reading for each prompt.
    """
    device = torch.device(device)
    readings: dict[int, Generated] = {}
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with _inference(model, device):
        for _, group in groupby(by_length, key=lambda index: len(prompts[index])):
            while indices := list(islice(group, batch_size)):
                features = [features_of(index).to(device) for index in indices]
                asked = [prompts[index] for index in indices]
                answers = _decode(model, features, asked, max_new_tokens, tokenizer.eos_id, device)
                readings.update(zip(indices, _as_texts(answers, tokenizer), strict=True))
    return [readings[index] for index in range(len(prompts))]


def batches_of_equal_plan(plans: Sequence[ViewPlan], batch_size: int) -> Iterator[list[int]]:
    """Indices of pages that can be decoded together, shortest prompts first; every index comes once."""

    def order(index: int) -> tuple[int, int, int, int]:
        plan = plans[index]
        return (plan.num_vision_tokens, plan.tile_columns, plan.tile_rows, plan.global_px)

    for _, group in groupby(sorted(range(len(plans)), key=order), key=order):
        while chunk := list(islice(group, batch_size)):
            yield chunk


def repeats_itself(token_ids: Sequence[int]) -> bool:
    """Whether the last `LOOP_TOKENS` tokens are one short unit over and over."""
    if len(token_ids) < LOOP_TOKENS:
        return False
    tail = token_ids[-LOOP_TOKENS:]
    # The last token must stand one period earlier as well: a cheap test that spares nearly all comparisons.
    return any(
        tail[-1] == tail[-1 - period] and tail[period:] == tail[:-period] for period in range(1, LOOP_MAX_PERIOD + 1)
    )


@contextmanager
def _inference(model: OcrModel, device: torch.device) -> Iterator[None]:
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
    """Leaves compiled blocks aside: a cache that grows by a token a step would compile them again and again."""
    if all(part._compiled_call_impl is None for part in module.modules()):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _decode(
    model: OcrModel,
    features: Sequence[Tensor],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int,
    device: torch.device,
) -> list[_Answer]:
    """Answers to prompts of one length."""
    answers = [_Answer() for _ in prompts]
    running = list(answers)
    cache = growing_cache()
    ids_BL = torch.tensor([list(prompt) for prompt in prompts], device=device)
    logits_BV = _next_logits(model, model.embed_inputs(ids_BL, features), cache)
    steps_per_check = STEPS_PER_CHECK.get(device.type, STEPS_PER_CHECK_ELSEWHERE)
    unseen: list[Tensor] = []
    for step in range(1, max_new_tokens + 1):
        token_B = logits_BV.argmax(dim=-1)
        unseen.append(token_B)
        if step % steps_per_check == 0 or step == max_new_tokens:
            kept = _take(running, unseen, eos_id)
            unseen = []
            if not kept or step == max_new_tokens:
                break
            # Each move copies the cache, so rows go in bunches.
            if 4 * len(kept) <= 3 * len(running):
                rows = torch.tensor(kept, device=device)
                cache.batch_select_indices(rows)
                token_B = token_B[rows]
                running = [running[row] for row in kept]
        logits_BV = _step(model, token_B, cache)
    return answers


def _take(running: Sequence[_Answer], unseen: Sequence[Tensor], eos_id: int) -> list[int]:
    """Hand new tokens to their answers; rows whose answers go on."""
    for row, token_ids in enumerate(torch.stack(list(unseen), dim=1).tolist()):
        for token_id in token_ids:
            running[row].push(token_id, eos_id)
    return [row for row, answer in enumerate(running) if not answer.is_done]


def _encode(model: OcrModel, pages: Sequence[PreparedViews], device: torch.device) -> list[Tensor]:
    """Vision features `[L, D]` of pages with one plan."""
    plan = pages[0].plan
    tiles = [torch.as_tensor(page.tiles_THWC) for page in pages] if plan.num_tiles else []
    return model.image_features(
        torch.stack([torch.as_tensor(page.global_view_HWC) for page in pages]).to(device),
        torch.cat(tiles).to(device) if tiles else None,
        [(plan.tile_columns, plan.tile_rows)] * len(pages),
    )


def _as_texts(answers: Sequence[_Answer], tokenizer: OcrTokenizer) -> list[Generated]:
    return [Generated(tokenizer.decode(each.token_ids), len(each.token_ids), each.ended) for each in answers]


def _step(model: OcrModel, token_B: Tensor, cache: Cache) -> Tensor:
    """Logits `[B, V]` after one more token."""
    return _next_logits(model, model.embed_inputs(token_B[:, None], []), cache)


def _next_logits(model: OcrModel, embeds_BLD: Tensor, cache: Cache) -> Tensor:
    seen = cache.get_seq_length()
    position_ids = torch.arange(seen, seen + embeds_BLD.shape[1], device=embeds_BLD.device)[None]
    hidden_BLD, _ = model.decode(embeds_BLD, position_ids, None, cache)
    logits_BV: Tensor = model.lm_head(hidden_BLD[:, -1])
    return logits_BV
