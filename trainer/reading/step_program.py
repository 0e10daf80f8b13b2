"""Decoding by chance with buffers that never move: one step for all answers, recorded as a CUDA graph and replayed.

A step of a small model is hundreds of short kernels, which the host launches more slowly than the card runs them; a
replay launches them at once. Answers that have ended are decoded on until all have: a batch that shrinks would need
another recording. Without CUDA the same step runs as it is.

For decoders of our own (`Decoder`), whose cache may be any object, and which see all of their answer.

Shape letters: B answers, N heads, L prompt tokens, T tokens of prompt and longest answer, D head width, V vocabulary,
S steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shared.deepseek_ocr.moe import Experts

if TYPE_CHECKING:
    from transformers import Cache

    from shared.deepseek_ocr.protocol import OcrModel

logger = logging.getLogger(__name__)

WARM_STEPS = 3
"""Steps before recording, in which libraries allocate workspaces and choose kernels."""
MAX_PROGRAMS = 4
"""Shapes whose buffers are kept."""


class FixedCache:
    """Keys and values in buffers of one length; each row has its own next place."""

    def __init__(self, place_B: Tensor) -> None:
        """Take the tensor that says where each row's next token goes; the caller advances it."""
        self._place_B = place_B
        self._rows_B = torch.arange(len(place_B), device=place_B.device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def fill(self, rows: slice, prefilled: Cache, times: int, num_tokens: int) -> None:
        """Copy the prompts of another cache, each `times` times, to these rows; buffers have `num_tokens`."""
        layers: Any = prefilled.layers
        for number, layer in enumerate(layers):
            keys_BNLD, values_BNLD = _tensor(layer.keys), _tensor(layer.values)
            if number == len(self._keys):
                _, heads, _, width = keys_BNLD.shape
                shape = len(self._place_B), heads, num_tokens, width
                # Zeros, not what was there: what is masked is multiplied by 0 all the same.
                self._keys.append(keys_BNLD.new_zeros(shape))
                self._values.append(values_BNLD.new_zeros(shape))
            length = keys_BNLD.shape[2]
            self._keys[number][rows, :, :length] = keys_BNLD.repeat_interleave(times, dim=0)
            self._values[number][rows, :, :length] = values_BNLD.repeat_interleave(times, dim=0)

    def update(self, keys_BN1D: Tensor, values_BN1D: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write a token of each row; returns all buffers `[B, N, T, D]`, of which the mask says what is in use."""
        self._keys[layer][self._rows_B, :, self._place_B] = keys_BN1D[:, :, 0].to(self._keys[layer].dtype)
        self._values[layer][self._rows_B, :, self._place_B] = values_BN1D[:, :, 0].to(self._values[layer].dtype)
        return self._keys[layer], self._values[layer]


@dataclass(slots=True)
class StepProgram:
    """Steps of one shape: so many answers, so many tokens.

    Attributes:
        model: in evaluation mode while it runs.
        num_tokens: of prompt and longest answer.
        temperature: logits are divided by it.
        token_B: the newest token of each answer.
        place_B: where it goes.
        drawn_BS: all tokens so far.
        step_1: their number.
    """

    model: OcrModel
    num_tokens: int
    temperature: float
    token_B: Tensor
    place_B: Tensor
    drawn_BS: Tensor
    step_1: Tensor
    cache: FixedCache
    _positions_T: Tensor
    _graph: Any = field(default=None)
    _is_recordable: bool = True

    def begin(self, logits_BV: Tensor, prompt_lengths: Sequence[int]) -> None:
        """Draw the first tokens; the cache has been filled."""
        self.place_B.copy_(torch.tensor(prompt_lengths))
        self.step_1.zero_()
        self._draw(logits_BV)

    def advance(self, steps: int) -> None:
        """Draw so many further tokens of every answer."""
        with recordable_experts(self.model, self.token_B.device):
            if self._graph is None and self._is_recordable and self.token_B.device.type == "cuda":
                self._record()
            for _ in range(steps):
                if self._graph is not None:
                    self._graph.replay()
                else:
                    self._step()

    def _step(self) -> None:
        is_cuda = self.token_B.device.type == "cuda"
        # Cached casts of the adapter's weights would be recorded, and be those of an earlier update at each replay.
        with torch.autocast(self.token_B.device.type, torch.bfloat16, enabled=is_cuda, cache_enabled=False):
            embeds_B1D = self.model.embed_inputs(self.token_B[:, None], [])
            mask_B11T = (self._positions_T <= self.place_B[:, None])[:, None, None]
            hidden_B1D, _ = self.model.decode(embeds_B1D, self.place_B[:, None], mask_B11T, self.cache)
            logits_BV = self.model.lm_head(hidden_B1D[:, -1])
        self.place_B.add_(1)
        self._draw(logits_BV)

    def _draw(self, logits_BV: Tensor) -> None:
        token_B = draw_tokens(logits_BV, self.temperature)
        self.token_B.copy_(token_B)
        self.drawn_BS.index_copy_(1, self.step_1, token_B[:, None])
        self.step_1.add_(1)

    def _record(self) -> None:
        """Record a step. Warm steps and the recording change the state, which is put back."""
        kept = [each.clone() for each in (self.token_B, self.place_B, self.drawn_BS, self.step_1)]
        random_state = torch.cuda.get_rng_state(self.token_B.device)
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_STEPS):
                    self._step()
                    for each, before in zip(self._state(), kept, strict=True):
                        each.copy_(before)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._graph = graph
        except RuntimeError as error:
            logger.warning("decoding steps cannot be recorded, so they are launched one by one: %s", error)
            self._is_recordable = False
        for each, before in zip(self._state(), kept, strict=True):
            each.copy_(before)
        torch.cuda.set_rng_state(random_state, self.token_B.device)

    def _state(self) -> tuple[Tensor, ...]:
        return self.token_B, self.place_B, self.drawn_BS, self.step_1


@dataclass(slots=True)
class StepPrograms:
    """Programs by shape; the least recently used one goes first."""

    _kept: dict[tuple[int, int, int, float], StepProgram] = field(default_factory=dict)

    def of(
        self, model: OcrModel, num_answers: int, prompt_tokens: int, max_new_tokens: int, temperature: float
    ) -> StepProgram:
        """The program for so many answers, with prompts and answers of at most so many tokens."""
        key = (num_answers, prompt_tokens, max_new_tokens, temperature)
        program = self._kept.pop(key, None)
        if program is None or program.model is not model:
            while len(self._kept) >= MAX_PROGRAMS:
                self._kept.pop(next(iter(self._kept)))
            program = _program(model, num_answers, prompt_tokens, max_new_tokens, temperature)
        self._kept[key] = program
        return program


@contextmanager
def recordable_experts(model: OcrModel, device: torch.device) -> Iterator[None]:
    """Compute experts in full within a block where their grouped product reads on the host, as it does in float32.

    A graph cannot be recorded around such a read.
    """
    assert isinstance(model, nn.Module)
    changed = [
        module
        for module in model.modules()
        if isinstance(module, Experts)
        and module.implementation == "stacked"
        and module.gate_up_proj.dtype == torch.float32
        and device.type == "cuda"
    ]
    for module in changed:
        module.implementation = "dense"
    try:
        yield
    finally:
        for module in changed:
            module.implementation = "stacked"


def draw_tokens(logits_BV: Tensor, temperature: float) -> Tensor:
    """Draw a token of each row `[B]` with the softmax's probabilities; the host waits for nothing.

    Source: the largest of probabilities over exponential variables (the Gumbel-max trick).
    """
    probabilities_BV = (logits_BV.float() / temperature).softmax(dim=-1)
    return (probabilities_BV / torch.empty_like(probabilities_BV).exponential_()).argmax(dim=-1)


def _program(
    model: OcrModel, num_answers: int, prompt_tokens: int, max_new_tokens: int, temperature: float
) -> StepProgram:
    device = model.lm_head.weight.device
    place_B = torch.zeros(num_answers, dtype=torch.long, device=device)
    num_tokens = prompt_tokens + max_new_tokens
    return StepProgram(
        model,
        num_tokens,
        temperature,
        torch.zeros_like(place_B),
        place_B,
        torch.zeros((num_answers, max_new_tokens), dtype=torch.long, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
        FixedCache(place_B),
        torch.arange(num_tokens, device=device)[None],
    )


def _tensor(found: Tensor | None) -> Tensor:
    assert found is not None, "the prompt has been read"
    return found
