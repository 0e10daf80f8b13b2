"""All batching policy: the order of the queue, admission, the work of a step, the batching window. Pure functions.

Pages are admitted in order of arrival, except those with priority, wholly or not at all, and a step does a bounded
amount of encoding and prefill while other pages decode. Knows only what a page costs: no torch, no clock, no page.
Called by the engine's single thread, which carries the decisions out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol, TypeVar

VIEWS_PER_STEP = 2
PREFILL_TOKENS_PER_STEP = 4096
"""Bounds of a step on a CPU; `gpu.memory` has those of a GPU. With 1, 2, 4 and 8 views nano's dimensions read 0.47,
0.47, 0.43 and 0.40 A4 pages a second, and 3.1, 3.4, 3.1 and 2.8 of one view; the longest step with running pages
takes 0.7, 1.0, 1.0 and 2.6 s. 1024 tokens instead of 4096 change nothing beyond chance (2 EPYC cores, torch 2.13,
`benchmarks/engine_settings.py cpu-bounds`)."""
ENCODED_AHEAD = 2
"""Pages are encoded ahead of their prefill up to so many steps' worth of prompt tokens."""


@dataclass(frozen=True, slots=True)
class PageCost:
    """What one page takes; known before it runs."""

    sequence_id: str
    num_views: int
    """Those to encode; 0 where the page's features are at hand."""
    prompt_tokens: int
    """Vision and text tokens that the decoder reads before its first answer."""
    max_new_tokens: int
    block_tokens: int = 1
    """Unit in which the key and value cache is allocated."""
    has_priority: bool = False
    """Whether it overtakes pages that wait or are being started; for pages that are few and short."""
    kept_answer_tokens: int | None = None
    """Newest answer tokens whose keys and values are kept; None: all."""

    @property
    def kv_tokens(self) -> int:
        """Tokens of key and value cache that the page may fill, in whole blocks; reserved as a whole."""
        answer = self.max_new_tokens
        if self.kept_answer_tokens is not None:
            answer = min(answer, self.kept_answer_tokens)
        return -(-(self.prompt_tokens + answer) // self.block_tokens) * self.block_tokens


@dataclass(frozen=True, slots=True)
class ActivePage:
    """An admitted page and how far it is."""

    cost: PageCost
    views_encoded: int = 0
    is_decoding: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine holds at once and does in one step.

    The two bounds on a step keep pages that already decode from stalling behind new ones: between two of their tokens
    lie at most so many views and prompt tokens. A single page above a bound still gets its turn alone.
    """

    slots: int
    kv_tokens: int
    views_per_step: int = VIEWS_PER_STEP
    prefill_tokens_per_step: int = PREFILL_TOKENS_PER_STEP
    idle_multiplier: int = 1
    """Multiplies both bounds while no page decodes: nothing stalls then, and larger batches are cheaper."""

    def step_budget(self, *, decoding: bool) -> tuple[int, int]:
        """Views and prompt tokens of a step, with pages that decode or without."""
        factor = 1 if decoding else self.idle_multiplier
        return self.views_per_step * factor, self.prefill_tokens_per_step * factor

    def can_hold(self, cost: PageCost) -> bool:
        """Whether an empty engine could hold the page; others must never enter the queue."""
        return cost.kv_tokens <= self.kv_tokens


@dataclass(frozen=True, slots=True)
class Decision:
    """What a step starts, in the order in which the engine does it; ids in order of arrival."""

    admit: tuple[str, ...] = ()
    encode: tuple[tuple[str, int], ...] = ()
    """Sequence and how many of its next views to encode."""
    prefill: tuple[str, ...] = ()


class Budget:
    """What is left to admit pages with; each page is taken wholly or not at all."""

    def __init__(self, limits: Limits, active: Iterable[PageCost]) -> None:
        self._slots = limits.slots
        self._kv_tokens = limits.kv_tokens
        for cost in active:
            self._slots -= 1
            self._kv_tokens -= cost.kv_tokens

    def take(self, cost: PageCost) -> bool:
        """Reserve room for a page, if there is room for all of it."""
        if self._slots < 1 or cost.kv_tokens > self._kv_tokens:
            return False
        self._slots -= 1
        self._kv_tokens -= cost.kv_tokens
        return True


def queue_index(waiting: Iterable[PageCost], new: PageCost) -> int | None:
    """Where a new page joins the queue: behind the last one with priority, or at the end (None)."""
    return sum(cost.has_priority for cost in waiting) if new.has_priority else None


def decide(waiting: Iterable[PageCost], active: Sequence[ActivePage], limits: Limits) -> Decision:
    """Plan what the next step starts; every page that decodes gains a token in any case.

    A page that does not fit yet holds back all behind it, so that none starves. A page with priority is prefilled in
    the step that admits it, unless it has more views to encode than a step may encode.

    Args:
        waiting: Pages that `limits` can hold, in the order of `queue_index`; read up to the first that has to wait.
        active: Admitted pages, oldest first.
        limits: Room of the engine and bounds of a step.

    Returns:
        The step; equal arguments give an equal step.
    """
    budget = Budget(limits, (page.cost for page in active))
    admitted = list(itertools.takewhile(budget.take, waiting))
    pages = sorted([*active, *(ActivePage(cost) for cost in admitted)], key=lambda page: not page.cost.has_priority)
    views, prefill_tokens = limits.step_budget(decoding=any(page.is_decoding for page in active))
    encode, encoded = _plan_encoding(pages, views, ENCODED_AHEAD * prefill_tokens)
    return Decision(
        admit=tuple(cost.sequence_id for cost in admitted),
        encode=encode,
        prefill=_plan_prefill(encoded, prefill_tokens),
    )


class HasAdapter(Protocol):
    """A sequence that decodes."""

    adapter: int


Row = TypeVar("Row", bound=HasAdapter)


def decode_order(rows: Iterable[Row]) -> list[Row]:
    """Sort a decode batch by adapter: kernels are fastest where rows of one adapter are adjacent."""
    return sorted(rows, key=attrgetter("adapter"))


def batching_window_s(num_waiting: int, num_active: int, waited_s: float, slots: int, max_wait_s: float) -> float:
    """How much longer an idle engine waits for more pages before its first step.

    Args:
        num_waiting: Pages that wait; a full set of slots starts at once.
        num_active: Admitted pages; with any, nothing waits.
        waited_s: Seconds since the first page arrived.
        slots: Pages that fit at once.
        max_wait_s: Bound on the wait, in seconds.

    Returns:
        Seconds, 0 when the engine should step.
    """
    if num_active or not num_waiting or num_waiting >= slots:
        return 0.0
    return max(0.0, max_wait_s - waited_s)


def _plan_encoding(
    pages: Iterable[ActivePage], views: int, ahead_tokens: int
) -> tuple[tuple[tuple[str, int], ...], list[PageCost]]:
    """Distribute the step's views; also returns the pages whose views are all encoded after it.

    No page is begun once those before it will keep the decoder busy: its encoded views would only take memory.
    """
    encode, encoded = [], []
    for page in pages:
        if page.is_decoding:
            continue
        missing = page.cost.num_views - page.views_encoded
        granted = min(missing, views) if ahead_tokens > 0 else 0
        ahead_tokens -= page.cost.prompt_tokens
        views -= granted
        if granted:
            encode.append((page.cost.sequence_id, granted))
        if granted == missing:
            encoded.append(page.cost)
    return tuple(encode), encoded


def _plan_prefill(encoded: Iterable[PageCost], tokens: int) -> tuple[str, ...]:
    prefill: list[str] = []
    for cost in encoded:
        if prefill and cost.prompt_tokens > tokens:
            break
        tokens -= cost.prompt_tokens
        prefill.append(cost.sequence_id)
    return tuple(prefill)
