"""Each answer's state on the device: tokens, end, loop detector, sampling parameters.

Owns the tensors and how a slot's values begin; the sampler kernel updates them, once per new token. The host writes
only when a slot opens, rewinds or closes, always by enqueuing, never by waiting. Used by the engine's single thread.

Shape letters: S slots and one scratch slot after them, L answer tokens at most, P periods of the loop rule, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.contract.repetition import LoopRule

REPORT_COLUMNS = 4
"""Token; log probability (the bits of a float32); `TokenStatus`; tokens to keep for LOOP, else the longest
run of repeats."""
GUARD_NGRAM = 12
GUARD_WINDOW = 256
"""Defaults of `repetition.RepetitionGuard`, which the second attempt on the device repeats."""


@dataclass(slots=True)
class AnswerState:
    """All slots' answers, on one device.

    Invariant: a slot that is done stays as it is until it is opened or rewound; the scratch slot, which padding rows
    name, is always done. Columns of `history_SL` from `count_S` on mean nothing.
    """

    eos_id: int
    token_S: Tensor
    """int64: newest token, fed next."""
    position_S: Tensor
    """int32: position of the newest token, hence the tokens in the cache before the step that feeds it."""
    prompt_S: Tensor
    """int32: tokens of the prompt."""
    count_S: Tensor
    """int32: answer tokens so far."""
    limit_S: Tensor
    """int32: answer tokens at most."""
    history_SL: Tensor
    """int32: the answer's tokens."""
    done_S: Tensor
    """bool: the answer has ended and no longer changes."""
    runs_SP: Tensor
    """int32: tokens at the end that equal the token p before them, for p = 1 to P."""
    guard_S: Tensor
    """bool: second attempt, in which no n-gram repeats."""
    restart_S: Tensor
    """int32: answer tokens before the second attempt; neither loops nor n-grams reach back further than they may."""
    forbidden_S: Tensor
    """int32: what the next token may not be; -1 none."""
    temperature_S: Tensor
    """float32: 0 chooses the most probable token."""
    seed_S: Tensor
    """int64: of the slot's random numbers."""
    adapter_S: Tensor
    """int32: the adapter that answers; -1 the base alone."""

    @classmethod
    def create(
        cls, num_slots: int, max_answer_tokens: int, rule: LoopRule, eos_id: int, device: torch.device | str
    ) -> AnswerState:
        """Make a state in which every slot is done.

        Args:
            num_slots: Slots that can be opened.
            max_answer_tokens: L.
            rule: What the loop detector looks for.
            eos_id: The token that ends an answer.
            device: Where the tensors live.

        Returns:
            The state.
        """
        slots = num_slots + 1

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            eos_id=eos_id,
            token_S=zeros(slots, dtype=torch.int64),
            position_S=zeros(slots),
            prompt_S=zeros(slots),
            count_S=zeros(slots),
            limit_S=zeros(slots),
            history_SL=zeros(slots, max_answer_tokens),
            done_S=torch.ones(slots, dtype=torch.bool, device=device),
            runs_SP=zeros(slots, rule.max_period),
            guard_S=zeros(slots, dtype=torch.bool),
            restart_S=zeros(slots),
            forbidden_S=zeros(slots) - 1,
            temperature_S=zeros(slots, dtype=torch.float32),
            seed_S=zeros(slots, dtype=torch.int64),
            adapter_S=zeros(slots) - 1,
        )

    @property
    def scratch_slot(self) -> int:
        """The slot that padding rows name."""
        return self.token_S.shape[0] - 1

    def open(
        self,
        slots: Sequence[int],
        prompt_tokens: Sequence[int],
        limits: Sequence[int],
        temperatures: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        adapters: Sequence[int] | None = None,
    ) -> None:
        """Begin answers; each one's first `choose` takes the logits of its prompt's last token.

        Args:
            slots: Slots that are free.
            prompt_tokens: Tokens of each prompt.
            limits: Answer tokens at most, for each.
            temperatures: 0 where left out.
            seeds: Of the random numbers, 0 where left out.
            adapters: -1 where left out.

        Raises:
            ValueError: A limit exceeds what the state holds.
        """
        if max(limits) > self.history_SL.shape[1]:
            raise ValueError(f"{max(limits)} answer tokens wanted, the state holds {self.history_SL.shape[1]}")
        seeds = seeds or [0] * len(slots)
        adapters = adapters or [-1] * len(slots)
        numbers_5R = self._upload(torch.tensor([slots, prompt_tokens, limits, seeds, adapters]))
        slots_R = numbers_5R[0]
        self.prompt_S[slots_R] = numbers_5R[1].int()
        # The first choice moves on to the position after the prompt's last.
        self.position_S[slots_R] = numbers_5R[1].int() - 1
        self.limit_S[slots_R] = numbers_5R[2].int()
        self.seed_S[slots_R] = numbers_5R[3]
        self.adapter_S[slots_R] = numbers_5R[4].int()
        temperatures_R = torch.tensor(temperatures or [0.0] * len(slots), dtype=torch.float32)
        self.temperature_S[slots_R] = self._upload(temperatures_R)
        for zeroed in (self.token_S, self.count_S, self.runs_SP, self.guard_S, self.restart_S, self.done_S):
            zeroed.index_fill_(0, slots_R, 0)
        self.forbidden_S.index_fill_(0, slots_R, -1)

    def rewind(self, slot: int, *, position: int, kept_tokens: int, newest_token: int, forbidden: int | None) -> None:
        """Let an answer go on from one of its tokens.

        Args:
            slot: Its slot.
            position: Of its last kept token: prompt tokens + `kept_tokens` - 1.
            kept_tokens: Answer tokens kept, at least 1.
            newest_token: The last of them, to be fed next.
            forbidden: With a second attempt, the token that led into the loop; None: there are no bans.
        """
        self.token_S[slot] = newest_token
        self.position_S[slot] = position
        self.count_S[slot] = kept_tokens
        self.restart_S[slot] = kept_tokens
        self.forbidden_S[slot] = -1 if forbidden is None else forbidden
        self.guard_S[slot] = forbidden is not None
        self.runs_SP[slot] = 0
        self.done_S[slot] = False

    def close(self, slot: int) -> None:
        """End an answer from outside."""
        self.done_S[slot] = True

    def _upload(self, values: Tensor) -> Tensor:
        device = self.token_S.device
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
