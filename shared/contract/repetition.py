"""Degenerate output: detecting that a page's answer loops, and the second attempt.

Owns the loop rule, its incremental detector and the guard of the second attempt. Knows only token ids: no torch, no
text. Called by the engine's single thread, once per new token of each page.

The rule: the last tokens repeat with a period of at most `max_period` tokens, at least `min_repeats` times, over at
least `min_tokens` tokens. Real pages repeat too (rules, dotted leaders, empty table cells, forms), so both bounds are
above the length of a line or table row of a dense page. A numbered list is never periodic, since its numbers change.

Where the page's print is known, it decides: once `ask_tokens` tokens have repeated, the rows of print that are like the
period are counted. If there are at least `fewest_rows`, the tail may repeat as often as there are rows, and no more.

The steps: (1) as requested, greedy or sampled; (2) once a loop is certain, back to the end of the last row that the
page has, or of the first period, and on from there in the same way, with the loop's next token forbidden and no n-gram
repeated within a window; (3) the text up to there. The engine chooses between (2) and (3) with `is_better`, and ends
(2) early with `is_hopeless`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_CONFIDENCE = 0.6
"""Confidence from which a second attempt is kept. A loop that the guard interrupts every 12 tokens stays below it:
eleven certain tokens and one of probability 0.001 have the mean 0.56."""
FAIR_TRIAL_TOKENS = 64
"""Length from which a second attempt may be given up."""


@dataclass(frozen=True, slots=True)
class LoopRule:
    """When a periodic tail counts as a loop."""

    max_period: int = 64
    min_tokens: int = 256
    min_repeats: int = 6
    suspicion: int = 4
    """Length in tokens from which a repeating tail is held back from the stream, until it ends or is certain."""
    ask_tokens: int = 48
    """Length in tokens of a repeating tail, without its first period, at which the page's rows are counted."""
    fewest_rows: int = 3
    """Fewer rows of print like the period are taken for chance."""

    @property
    def max_rewind(self) -> int:
        """Most tokens that a second attempt takes back: a loop without its first period, when it becomes certain."""
        return max(max(self.min_tokens, self.min_repeats * period) - period for period in range(1, self.max_period + 1))


@dataclass(frozen=True, slots=True)
class Rows:
    """What a page shows of a repeating text."""

    count: int
    """Rows of print that are like it."""
    spacing: int
    """Tokens of spacing with which the text begins."""


FindRows = Callable[[Sequence[int], Sequence[int]], Rows]
"""From the tokens before a repeating text, and those of one period, to the page's rows of it."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How often a repeating tail may repeat."""

    start: int
    """Tokens before its first period."""
    period: int
    rows: Rows

    @property
    def end(self) -> int:
        """Tokens up to the end of its last true period, with the spacing after it: what follows has a choice."""
        return self.start + self.period * self.rows.count + self.rows.spacing

    def is_of(self, tokens: Sequence[int]) -> bool:
        """Whether the tail still repeats with the newest token."""
        return tokens[-1] == tokens[-1 - self.period]


def repeating_tail(tokens: Sequence[int], longest_run: int, max_period: int) -> tuple[int, int] | None:
    """Where a repeating tail begins.

    Args:
        tokens: The answer so far.
        longest_run: Tokens at its end that equal those one period before them.
        max_period: Of the rule.

    Returns:
        Tokens before its first period, and the period; None if there is no such tail.
    """
    count = len(tokens)
    for period in range(1, min(max_period, count - longest_run) + 1):
        start = count - longest_run - period
        if all(tokens[index] == tokens[index + period] for index in range(start, count - period)):
            return start, period
    return None


class LoopDetector:
    """The periods of a growing token sequence; O(max_period) integers of state and work for each token.

    Invariant: `_runs[p - 1]` is the number of tokens at the end that equal the token `p` before them.
    """

    def __init__(self, rule: LoopRule) -> None:
        periods = np.arange(1, rule.max_period + 1)
        self._needed = np.maximum(rule.min_tokens, rule.min_repeats * periods) - periods
        self._suspicion = rule.suspicion
        self._runs = np.zeros(rule.max_period, dtype=np.int64)
        # Newest token first, so that index p - 1 holds the token p before the coming one; -1 equals no token.
        self._tail = np.full(rule.max_period, -1, dtype=np.int64)
        self._num_tokens = 0

    def push(self, token: int) -> int | None:
        """Take the next token.

        Args:
            token: Id, 0 or more.

        Returns:
            Once a loop is certain, the number of tokens up to the end of its first period; otherwise None.
        """
        self._runs += 1
        self._runs *= self._tail == token
        self._tail[1:] = self._tail[:-1]
        self._tail[0] = token
        self._num_tokens += 1
        certain = np.flatnonzero(self._runs >= self._needed)
        return self._num_tokens - int(self._runs[certain].max()) if certain.size else None

    @property
    def num_settled(self) -> int:
        """Number of tokens that no loop seen so far could remove."""
        longest = int(self._runs.max())
        return self._num_tokens - longest if longest >= self._suspicion else self._num_tokens


class RepetitionGuard:
    """Tokens that the second attempt must not choose next.

    Invariant: of the n-grams within the last `window` tokens none is completed a second time, and the first token
    after the rollback is not the one that led into the loop.
    """

    def __init__(self, tokens: list[int], forbidden_first: int, ngram: int = 12, window: int = 256) -> None:
        self._ngram = ngram
        self._window = window
        self._forbidden_first: int | None = forbidden_first
        self._recent: deque[int] = deque(maxlen=ngram - 1)
        self._seen: deque[tuple[tuple[int, ...], int]] = deque()
        self._followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for token in tokens[-window:]:
            self._remember(token)

    def push(self, token: int) -> None:
        """Take the token that was chosen."""
        self._forbidden_first = None
        self._remember(token)

    def banned(self) -> list[int]:
        """Ids of tokens that must not come next."""
        banned = list(self._followers.get(tuple(self._recent), ()))
        if self._forbidden_first is not None:
            banned.append(self._forbidden_first)
        return banned

    def _remember(self, token: int) -> None:
        if len(self._recent) == self._ngram - 1:
            context = tuple(self._recent)
            self._followers[context].append(token)
            self._seen.append((context, token))
            if len(self._seen) > self._window:
                self._forget_oldest()
        self._recent.append(token)

    def _forget_oldest(self) -> None:
        context, _ = self._seen.popleft()
        followers = self._followers[context]
        # Entries are removed in order of arrival, so the oldest of a context is first.
        followers.pop(0)
        if not followers:
            del self._followers[context]


def is_better(ended_by_itself: bool, confidence: float) -> bool:
    """Whether the second attempt's continuation becomes part of the answer.

    Args:
        ended_by_itself: Whether it reached the end token; one that looped again or reached the limit needs confidence.
        confidence: Geometric mean of its tokens' probabilities, from 0 to 1.

    Returns:
        False if the continuation is dropped.
    """
    return ended_by_itself or confidence >= MIN_CONFIDENCE


def is_hopeless(num_tokens: int, confidence: float) -> bool:
    """Whether to give up a second attempt before its end: without its loop the model writes improbable tokens.

    Args:
        num_tokens: Length of the attempt so far.
        confidence: Geometric mean of its tokens' probabilities, from 0 to 1.

    Returns:
        True if it ends now.
    """
    return num_tokens >= FAIR_TRIAL_TOKENS and confidence < MIN_CONFIDENCE
