"""From an answer's tokens to its result: where it ends, what a loop removes, when a second attempt is kept.

The service and the trainer's gate share these rules, so the gate measures what is served. `TokenJudge` gives each token
its status on the host (on a GPU the sampler kernel does); `AnswerTokens` acts on it. Does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from shared.contract.repetition import (
    Allowance,
    FindRows,
    LoopDetector,
    LoopRule,
    RepetitionGuard,
    is_better,
    is_hopeless,
    repeating_tail,
)


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"


class TokenStatus(IntEnum):
    """What a chosen token does to its answer."""

    RUN = 0
    STOP = 1
    LENGTH = 2
    LOOP = 3
    FAULT = 4
    """The logits were not numbers."""
    IDLE = 5
    """The answer had ended before this step: no token was chosen, and the row's other columns have no meaning."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Where an answer goes on from."""

    kept: int
    """Number of tokens kept."""
    newest_token: int
    """The last of them."""
    forbidden: int | None
    """With a second attempt, the token that must not come next. None: the answer goes on as before, since the page has
    more of what it repeats."""


class TokenJudge:
    """Judges an answer's tokens one by one.

    Args:
        eos_id: Id of the token that ends an answer.
        max_new_tokens: Limit of the answer's length, at least 1.
        rule: When a repeating tail counts as a loop.

    Attributes:
        tokens: The answer so far, without the end token.
    """

    def __init__(self, eos_id: int, max_new_tokens: int, rule: LoopRule) -> None:
        self.tokens: list[int] = []
        self._eos_id = eos_id
        self._max_new_tokens = max_new_tokens
        self._rule = rule
        self._detector = LoopDetector(rule)
        self._restart = 0
        self._guard: RepetitionGuard | None = None

    def push(self, token: int) -> tuple[TokenStatus, int]:
        """Take a token.

        Args:
            token: Id, 0 or more.

        Returns:
            Its status, and a number of tokens: for LOOP those up to the end of the loop's first period, otherwise those
            of the longest repeating tail.
        """
        if token == self._eos_id:
            return TokenStatus.STOP, 0
        self.tokens.append(token)
        if self._guard:
            self._guard.push(token)
        keep = self._detector.push(token)
        if keep is not None:
            return TokenStatus.LOOP, self._restart + keep
        count = len(self.tokens)
        status = TokenStatus.LENGTH if count >= self._max_new_tokens else TokenStatus.RUN
        return status, count - self._restart - self._detector.num_settled

    def rewind(self, kept: int, forbidden: int | None) -> None:
        """Go on after the first `kept` tokens, as `Rewind` says."""
        del self.tokens[kept:]
        self._restart = kept
        self._detector = LoopDetector(self._rule)
        self._guard = None if forbidden is None else RepetitionGuard(self.tokens, forbidden)

    @property
    def num_left(self) -> int:
        """Tokens that may still come."""
        return self._max_new_tokens - len(self.tokens)

    @property
    def can_ban(self) -> bool:
        """Whether tokens may be banned, now or later in this attempt."""
        return self._guard is not None

    def banned(self) -> list[int]:
        """Ids of tokens that must not come next."""
        return self._guard.banned() if self._guard else []


class AnswerTokens:
    """The tokens of an answer, and those its result keeps.

    Args:
        rule: When a repeating tail counts as a loop.
        find_rows: Finds rows of the page that are like what the answer repeats; None if nothing is known of the page.
    """

    def __init__(self, rule: LoopRule, find_rows: FindRows | None = None) -> None:
        self._rule = rule
        self._find_rows = find_rows
        self._allowance: Allowance | None = None
        """Of the tail, once it has repeated for long enough to ask."""
        self._tokens: list[int] = []
        self._log_probabilities: list[float] = []
        self._num_settled = 0
        """Tokens that may be streamed: no loop seen so far could remove them."""
        self._restart: int | None = None
        """Number of tokens before the second attempt; None before there is one."""

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens kept so far, without the end token."""
        return self._tokens

    @property
    def log_probabilities(self) -> Sequence[float]:
        """Natural logarithms of the probabilities of `tokens`."""
        return self._log_probabilities[: len(self._tokens)]

    @property
    def confidence(self) -> float:
        """Geometric mean of the chosen tokens' probabilities."""
        return _geometric_mean(self._log_probabilities)

    @property
    def min_confidence(self) -> float:
        """The lowest of the chosen tokens' probabilities."""
        return math.exp(min(self._log_probabilities)) if self._log_probabilities else 0.0

    def push(self, token: int, log_probability: float, status: int, argument: int) -> FinishReason | Rewind | None:
        """Take the next token.

        Args:
            token: Id, 0 or more.
            log_probability: Natural logarithm of its probability.
            status: A `TokenStatus` other than FAULT and IDLE.
            argument: The number that `TokenJudge.push` returns with the status.

        Returns:
            Why the answer is complete, or where its second attempt begins, or None if it goes on.
        """
        self._log_probabilities.append(log_probability)
        if status == TokenStatus.STOP:
            return FinishReason.STOP
        self._tokens.append(token)
        if status == TokenStatus.RUN:
            if self._restart is None:
                return self._go_on(argument)
            # A second attempt is shown as a whole or not at all.
            if not self._is_hopeless(self._restart):
                return None
        elif status == TokenStatus.LOOP:
            return self._leave_loop(argument)
        return self._judge_continuation(FinishReason.LENGTH)

    def _go_on(self, longest_run: int) -> Rewind | None:
        """Settle tokens; leave a tail that repeats more often than the page shows it."""
        self._ask(longest_run)
        allowance, count = self._allowance, len(self._tokens)
        settled = count - (longest_run if longest_run >= self._rule.suspicion else 0)
        if allowance is not None:
            settled = min(settled, allowance.end)
        self._num_settled = max(self._num_settled, settled)
        if allowance is not None and count >= allowance.end + allowance.period:
            return self._second_attempt(allowance.end)
        return None

    def _ask(self, longest_run: int) -> None:
        """Find out how often the page shows what the tail repeats, once for each tail."""
        if self._allowance is not None and not self._allowance.is_of(self._tokens):
            self._allowance = None
        if self._find_rows is None or self._allowance is not None or longest_run != self._rule.ask_tokens:
            return
        tail = repeating_tail(self._tokens, longest_run, self._rule.max_period)
        if tail is not None:
            start, period = tail
            rows = self._find_rows(self._tokens[:start], self._tokens[start : start + period])
            if rows.count >= self._rule.fewest_rows:
                self._allowance = Allowance(start, period, rows)

    def _leave_loop(self, keep: int) -> FinishReason | Rewind:
        if self._restart is not None:
            self._cut(keep)
            return self._judge_continuation(FinishReason.REPETITION)
        allowance = self._allowance
        if allowance is None or not allowance.is_of(self._tokens):
            return self._second_attempt(keep)
        count = len(self._tokens)
        if count < allowance.end + allowance.period:
            # The page has as many rows and may have more below.
            return Rewind(count, self._tokens[-1], None)
        return self._second_attempt(allowance.end)

    def _second_attempt(self, keep: int) -> Rewind:
        # What a stream may have sent is kept, with and without streaming, so that both give the same text.
        keep = max(keep, self._num_settled)
        forbidden = self._tokens[keep]
        self._cut(keep)
        self._restart = self._num_settled = keep
        return Rewind(keep, self._tokens[-1], forbidden)

    def _is_hopeless(self, restart: int) -> bool:
        attempt = self._log_probabilities[restart:]
        return is_hopeless(len(attempt), _geometric_mean(attempt))

    def _judge_continuation(self, reason: FinishReason) -> FinishReason:
        """End an answer that had no end token; drop a second attempt that is no better."""
        if self._restart is None:
            return reason
        if not is_better(ended_by_itself=False, confidence=_geometric_mean(self._log_probabilities[self._restart :])):
            self._cut(self._restart)
        return FinishReason.REPETITION

    def _cut(self, keep: int) -> None:
        del self._tokens[keep:]
        del self._log_probabilities[keep:]


def _geometric_mean(log_probabilities: Sequence[float]) -> float:
    return math.exp(sum(log_probabilities) / len(log_probabilities)) if log_probabilities else 0.0
