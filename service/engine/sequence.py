"""One page's way through the engine: its answer so far, what of it may be shown, and when it ends.

Owns the bookkeeping between a chosen token and the text that leaves: held-back loops, the second attempt, confidence,
timings. That a loop has begun is the runner's finding; what follows from it is decided here. Knows the tokenizer, no
tensor and no other sequence. Used by the engine's single thread.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.engine.canary_features import CanaryFeatures
from service.engine.lora.registry import NO_ADAPTER
from service.engine.protocol import FinishReason, SamplingParams, SequenceResult, SequenceTimings
from service.engine.repetition import is_better, is_hopeless
from service.engine.runner import TokenStatus
from service.engine.scheduler import PageCost
from shared.deepseek_ocr.forms import PreparedPage
from shared.deepseek_ocr.geometry import ViewPlan
from shared.deepseek_ocr.tokenizer import OcrTokenizer


@dataclass(frozen=True, slots=True)
class Rewind:
    """A second attempt: where it begins, and what it may not begin with."""

    kept: int
    newest_token: int
    forbidden: int


class TokenBytes(dict[int, bytes]):
    """UTF-8 of each token that has occurred; looking one up in the tokenizer takes ten times as long."""

    def __init__(self, tokenizer: OcrTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> bytes:
        found = self[token_id] = self._tokenizer.token_bytes(token_id)
        return found


class Answer:
    """The tokens chosen for a page, and the text of those that nothing can take back.

    Invariant: text that was returned once is a prefix of the final text.
    """

    def __init__(self, token_bytes: TokenBytes, suspicion: int) -> None:
        """Begin an answer.

        Args:
            token_bytes: Of the checkpoint's tokenizer, shared by all answers.
            suspicion: See `LoopRule`.
        """
        self._token_bytes = token_bytes
        # As `tokenizer.StreamDecoder`: characters that are not complete are held back.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._suspicion = suspicion
        self._tokens: list[int] = []
        self._log_probabilities: list[float] = []
        self._num_settled = 0
        """Tokens that may be shown: all that no loop seen so far could take back."""
        self._num_shown = 0
        self._text: list[str] = []
        self._restart: int | None = None
        """Tokens before the second attempt."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer; the end token is none of them."""
        return len(self._tokens)

    @property
    def text(self) -> str:
        """Text shown so far; the whole answer once it has finished."""
        return "".join(self._text)

    @property
    def confidence(self) -> float:
        """Geometric mean of the chosen tokens' probabilities."""
        return _geometric_mean(self._log_probabilities)

    def push(self, token: int, log_probability: float, status: int, argument: int) -> FinishReason | Rewind | None:
        """Take the next token, as a runner reports it.

        Args:
            token: Its id.
            log_probability: Natural logarithm of its probability.
            status: A `TokenStatus`, not FAULT.
            argument: With LOOP: tokens up to the end of the loop's first period; else the longest run of
                repeated tokens.

        Returns:
            Why the answer is complete, or how it goes on otherwise than by its next token, or None.
        """
        self._log_probabilities.append(log_probability)
        if status == TokenStatus.STOP:
            return FinishReason.STOP
        self._tokens.append(token)
        if status == TokenStatus.RUN:
            if self._restart is None:
                num_settled = len(self._tokens) - (argument if argument >= self._suspicion else 0)
                self._num_settled = max(self._num_settled, num_settled)
                return None
            # A second attempt is shown as a whole or not at all.
            if not self._is_hopeless(self._restart):
                return None
        elif status == TokenStatus.LOOP:
            return self._leave_loop(argument)
        return self._judge_continuation(FinishReason.LENGTH)

    def settled_text(self) -> str:
        """Text that has become certain since the last call."""
        return self._show(self._num_settled) if self._num_settled > self._num_shown else ""

    def finish(self) -> str:
        """The rest of the text; no more tokens may follow."""
        rest = self._show(len(self._tokens))
        unfinished_character = self._decoder.decode(b"", final=True)
        self._text.append(unfinished_character)
        return rest + unfinished_character

    def _leave_loop(self, keep: int) -> FinishReason | Rewind:
        if self._restart is not None:
            self._cut(keep)
            return self._judge_continuation(FinishReason.REPETITION)
        # What the stream may have shown cannot be taken back, whether or not it was; that is less than the suspicion.
        keep = max(keep, self._num_settled)
        forbidden = self._tokens[keep]
        self._cut(keep)
        self._restart = self._num_settled = keep
        return Rewind(keep, self._tokens[-1], forbidden)

    def _is_hopeless(self, restart: int) -> bool:
        attempt = self._log_probabilities[restart:]
        return is_hopeless(len(attempt), _geometric_mean(attempt))

    def _judge_continuation(self, reason: FinishReason) -> FinishReason:
        """End an answer that did not end by itself; a second attempt that is no better is dropped."""
        if self._restart is None:
            return reason
        if not is_better(ended_by_itself=False, confidence=_geometric_mean(self._log_probabilities[self._restart :])):
            self._cut(self._restart)
        return FinishReason.REPETITION

    def _cut(self, keep: int) -> None:
        del self._tokens[keep:]
        del self._log_probabilities[keep:]

    def _show(self, count: int) -> str:
        new = self._decoder.decode(b"".join(map(self._token_bytes.__getitem__, self._tokens[self._num_shown : count])))
        self._num_shown = max(self._num_shown, count)
        self._text.append(new)
        return new


def _geometric_mean(log_probabilities: Sequence[float]) -> float:
    return math.exp(sum(log_probabilities) / len(log_probabilities)) if log_probabilities else 0.0


@dataclass(slots=True)
class Stages:
    """When a sequence passed each stage, on the engine's clock, in seconds."""

    submitted_s: float
    admitted_s: float = 0.0
    encoded_s: float = 0.0
    prefilled_s: float = 0.0

    def timings(self, now_s: float) -> SequenceTimings:
        """Durations of a sequence that ends now."""
        return SequenceTimings(
            queue_s=self.admitted_s - self.submitted_s,
            encode_s=self.encoded_s - self.admitted_s,
            prefill_s=self.prefilled_s - self.encoded_s,
            generate_s=now_s - self.prefilled_s,
        )


@dataclass(slots=True)
class PageSequence:
    """A page that waits or runs.

    Invariant: `slot` is None until the prompt was handed to the device; the encoded views are dropped then, pixels as
    soon as all of them are encoded.
    """

    sequence_id: str
    plan: ViewPlan
    page: PreparedPage | None
    prompt_ids: list[int]
    answer: Answer
    stages: Stages
    cost: PageCost
    params: SamplingParams
    views: Sequence[Any] | None = None
    """All, `[px, px, 3]` each, the global one first, on the host or the device; None until the first is needed."""
    encoded_views: list[Any] = field(default_factory=list)
    """Tensors, the global view's first."""
    slot: int | None = None
    epoch: int = 0
    """Grows when the answer takes another way than its next token; what the device chose for an older one is void."""
    num_launched: int = 0
    """Answer tokens launched so far, including those already collected."""
    adapter: int = NO_ADAPTER
    """Slot of the adapter that its request names."""
    canary: CanaryFeatures | None = None
    """Where a canary's features are, or go."""

    @property
    def num_prompt_tokens(self) -> int:
        """Vision and text tokens before the answer."""
        return len(self.prompt_ids)

    @property
    def wants_tokens(self) -> bool:
        """Whether its prompt is read and the longest answer not yet ordered."""
        return self.slot is not None and self.num_launched < self.params.max_new_tokens

    def next_views(self, count: int) -> Sequence[Any]:
        """The next views to encode; `views` are there."""
        assert self.views is not None
        first = len(self.encoded_views)
        return self.views[first : first + count]

    def drop_pixels(self) -> None:
        """Let go of what encoding needed."""
        self.page = self.views = None

    def result(self, reason: FinishReason, now_s: float) -> SequenceResult:
        """What is reported once the answer has finished."""
        vision_tokens = self.plan.num_vision_tokens
        return SequenceResult(
            sequence_id=self.sequence_id,
            text=self.answer.text,
            finish_reason=reason,
            confidence=self.answer.confidence,
            vision_tokens=vision_tokens,
            prompt_tokens=self.num_prompt_tokens - vision_tokens,
            completion_tokens=self.answer.num_tokens,
            timings=self.stages.timings(now_s),
        )
