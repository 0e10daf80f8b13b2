"""Which pages the engine takes on and what its next step does: pure decisions over counts.

Owns the rules (arrival order but for pages that go first, all or nothing, bounded work beside running pages). Knows no
torch, no clock and no page, only what a page costs. Called by the engine's single thread; executing a decision is the
engine's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VIEWS_PER_STEP = 2
PREFILL_TOKENS_PER_STEP = 4096
"""Bounds of a step on a CPU; `gpu.memory` has those of a GPU. With 1, 2, 4 and 8 views nano's dimensions read 0.47,
0.47, 0.43 and 0.40 A4 pages a second, and 3.1, 3.4, 3.1 and 2.8 of one view; the longest step beside running pages
takes 0.7, 1.0, 1.0 and 2.6 s. 1024 tokens instead of 4096 change nothing beyond chance (2 EPYC cores, torch 2.13,
`benchmarks/cpu_settings.py bounds`)."""
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
    """Tokens of key and value cache that are had together."""
    goes_first: bool = False
    """Whether it goes before all pages that wait and all that are being started; for pages that are few and short."""

    @property
    def kv_tokens(self) -> int:
        """Tokens of key and value cache that the page may fill, in whole blocks; reserved as a whole."""
        return -(-(self.prompt_tokens + self.max_new_tokens) // self.block_tokens) * self.block_tokens


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
    idle_factor: int = 1
    """How many times the bounds a step does while no page decodes: nobody waits, and larger batches are cheaper."""

    def beside(self, *, decoding: bool) -> tuple[int, int]:
        """Views and prompt tokens of a step, beside pages that decode or without any."""
        factor = 1 if decoding else self.idle_factor
        return self.views_per_step * factor, self.prefill_tokens_per_step * factor


@dataclass(frozen=True, slots=True)
class Decision:
    """One step's work, in the order in which the engine does it; ids in arrival order."""

    refuse: tuple[str, ...] = ()
    """Waiting pages that no empty engine could hold, as far as waiting pages were looked at."""
    admit: tuple[str, ...] = ()
    encode: tuple[tuple[str, int], ...] = ()
    """Sequence and how many of its next views to encode."""
    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()
    """Pages that gain a token, those prefilled in this step among them."""


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


def decide(waiting: Iterable[PageCost], active: Sequence[ActivePage], limits: Limits) -> Decision:
    """Plan the next step.

    A page that does not fit yet holds back all behind it, so that none starves; a page that can never fit is
    refused in its turn instead of waiting for ever. A page that goes first is prefilled in the step that admits it,
    unless it has views to encode and more than a step may encode.

    Args:
        waiting: Pages not yet admitted, those that go first ahead of the others, each kind oldest first; looked at up
            to the first that has to wait.
        active: Admitted pages, oldest first.
        limits: Room of the engine and bounds of a step.

    Returns:
        The step; equal arguments give an equal step.
    """
    admitted, refused = _admit(waiting, active, limits)
    pages = sorted([*active, *(ActivePage(cost) for cost in admitted)], key=lambda page: not page.cost.goes_first)
    views, prefill_tokens = limits.beside(decoding=any(page.is_decoding for page in active))
    encode, encoded = _plan_encoding(pages, views, ENCODED_AHEAD * prefill_tokens)
    prefill = _plan_prefill(encoded, prefill_tokens)
    return Decision(
        refuse=tuple(cost.sequence_id for cost in refused),
        admit=tuple(cost.sequence_id for cost in admitted),
        encode=encode,
        prefill=prefill,
        decode=(*(page.cost.sequence_id for page in active if page.is_decoding), *prefill),
    )


def company_wait_s(num_waiting: int, num_active: int, waited_s: float, slots: int, max_wait_s: float) -> float:
    """How much longer an idle engine waits for company before its first step.

    Args:
        num_waiting: Pages that wait.
        num_active: Admitted pages; with any, nothing waits.
        waited_s: How long the oldest waiting page has waited, in seconds.
        slots: Pages that fit at once; a full set starts at once.
        max_wait_s: Bound on the wait, in seconds.

    Returns:
        Seconds, 0 when the engine should step.
    """
    if num_active or not num_waiting or num_waiting >= slots:
        return 0.0
    return max(0.0, max_wait_s - waited_s)


def _admit(
    waiting: Iterable[PageCost], active: Iterable[ActivePage], limits: Limits
) -> tuple[list[PageCost], list[PageCost]]:
    budget = Budget(limits, (page.cost for page in active))
    admitted: list[PageCost] = []
    refused: list[PageCost] = []
    for cost in waiting:
        if cost.kv_tokens > limits.kv_tokens:
            refused.append(cost)
        elif budget.take(cost):
            admitted.append(cost)
        else:
            break
    return admitted, refused


def _plan_encoding(
    pages: Iterable[ActivePage], views: int, ahead_tokens: int
) -> tuple[tuple[tuple[str, int], ...], list[PageCost]]:
    """Share out the step's views; also the pages whose views are all encoded after it.

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
