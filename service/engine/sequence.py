"""One page in the engine, or several read in one pass: the answer, its stages and its result.

`shared.contract.answer` decides what follows from each token; this adds the text that may be streamed, and timings.
Knows the tokenizer, no tensor and no other sequence. Used by the engine's single thread.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from service.engine.canary_features import CanaryFeatures
from service.engine.lora.registry import NO_ADAPTER
from service.engine.protocol import SamplingParams, SequenceResult, SequenceTimings
from service.engine.runner import Alternatives
from service.engine.scheduler import PageCost
from shared.contract.answer import AnswerTokens, FinishReason
from shared.contract.confidence import TokenScores, score_tokens
from shared.contract.repetition import LoopRule, Rows
from shared.contract.rows import find_rows
from shared.deepseek_ocr.forms import PreparedPage
from shared.deepseek_ocr.geometry import ViewPlan
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from shared.images.page_ink import InkLine

_SAME = 1e-5
"""Logarithms of one probability differ less, whichever way they were computed."""


class TokenBytes(dict[int, bytes]):
    """UTF-8 of each token that has occurred; looking one up in the tokenizer takes ten times as long."""

    def __init__(self, tokenizer: OcrTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> bytes:
        found = self[token_id] = self._tokenizer.token_bytes(token_id)
        return found


class Answer(AnswerTokens):
    """An answer with the text of the tokens that can no longer be taken back.

    Invariant: text that was returned once is a prefix of the final text.

    Args:
        token_bytes: Of the checkpoint's tokenizer, shared by all answers.
        rule: When a repeating tail counts as a loop.
        lines: The page's print; none if it is not known.
    """

    def __init__(self, token_bytes: TokenBytes, rule: LoopRule, lines: Sequence[InkLine] = ()) -> None:
        def rows_like(before: Sequence[int], period: Sequence[int]) -> Rows:
            return find_rows([token_bytes[token] for token in before], [token_bytes[token] for token in period], lines)

        super().__init__(rule, rows_like if lines else None)
        self._token_bytes = token_bytes
        # Holds back incomplete characters.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_shown = 0
        self._text: list[str] = []
        self._alternatives: dict[int, tuple[tuple[bytes, float], ...]] = {}
        """By the place of the token that was chosen; a second attempt overwrites those that it takes back."""

    @property
    def text(self) -> str:
        """Text shown so far; the whole answer once it has finished."""
        return "".join(self._text)

    @property
    def has_shown_text(self) -> bool:
        """Whether any of it has been returned."""
        return any(self._text)

    def settled_text(self) -> str:
        """Text that has become certain since the last call."""
        return self._show(self._num_settled) if self._num_settled > self._num_shown else ""

    def finish(self) -> str:
        """The rest of the text; no more tokens may follow."""
        rest = self._show(len(self._tokens))
        unfinished_character = self._decoder.decode(b"", final=True)
        self._text.append(unfinished_character)
        return rest + unfinished_character

    def note(self, alternatives: Alternatives, token: int, log_probability: float) -> None:
        """Keep what could have been the next token; called before `push`.

        Args:
            alternatives: Most probable tokens. Of equal ones any may be missing, so the chosen one takes the place of
                the last that is no more probable.
            token: The one that was chosen.
            log_probability: Its own.
        """
        others = [each for each in alternatives if each[0] != token]
        if len(others) == len(alternatives) and others and others[-1][1] <= log_probability + _SAME:
            others.pop()
        if len(others) < len(alternatives):
            is_no_better = (score <= log_probability + _SAME for _, score in others)
            others.insert(
                next((at for at, said in enumerate(is_no_better) if said), len(others)), (token, log_probability)
            )
        self._alternatives[len(self._tokens)] = tuple((self._token_bytes[each], score) for each, score in others)

    def token_scores(self) -> TokenScores:
        """Scores of the tokens in the whole text; taken once, after the end, as they cost a pass over all tokens."""
        scores = score_tokens(map(self._token_bytes.__getitem__, self._tokens), self.log_probabilities)
        if not self._alternatives:
            return scores
        return replace(scores, alternatives=tuple(self._alternatives.get(at, ()) for at in range(len(self._tokens))))

    def _show(self, count: int) -> str:
        new = self._decoder.decode(b"".join(map(self._token_bytes.__getitem__, self._tokens[self._num_shown : count])))
        self._num_shown = max(self._num_shown, count)
        self._text.append(new)
        return new


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
    """A page that waits or runs, or several in one prompt.

    Invariant: `slot` is None until the prompt was handed to the device; the encoded views are dropped then, pixels as
    soon as all of them are encoded.
    """

    sequence_id: str
    plans: Sequence[ViewPlan]
    """Of each page."""
    pages: Sequence[PreparedPage]
    """Empty once they are not needed."""
    prompt_ids: list[int]
    answer: Answer
    stages: Stages
    cost: PageCost
    params: SamplingParams
    views: Sequence[Any] | None = None
    """All, `[px, px, 3]` each, page by page, the global one of each first, on the host or the device; None until the
    first is needed."""
    encoded_views: list[Any] = field(default_factory=list)
    """Tensors, in the same order."""
    slot: int | None = None
    epoch: int = 0
    """Grows when the answer takes another way than its next token; what the device chose for an older one is void."""
    num_launched: int = 0
    """Answer tokens launched so far, including those already collected."""
    adapter: int = NO_ADAPTER
    """Slot of the adapter that its request names."""
    canary: CanaryFeatures | None = None
    """Where a canary's features are, or go."""
    wants_token_scores: bool = False
    is_streamed: bool = True

    @property
    def num_prompt_tokens(self) -> int:
        """Vision and text tokens before the answer."""
        return len(self.prompt_ids)

    @property
    def wants_tokens(self) -> bool:
        """Whether its prompt is read and the longest answer not yet ordered."""
        return self.slot is not None and self.num_launched < self.params.max_new_tokens

    @property
    def shows_text(self) -> bool:
        """Whether new text is reported now, rather than with the result."""
        return self.is_streamed or not self.answer.has_shown_text

    def next_views(self, count: int) -> Sequence[Any]:
        """The next views to encode; `views` are there."""
        assert self.views is not None
        first = len(self.encoded_views)
        return self.views[first : first + count]

    def drop_pixels(self) -> None:
        """Let go of what encoding needed."""
        self.pages, self.views = (), None

    def encoded_pages(self) -> list[tuple[ViewPlan, list[Any]]]:
        """Each page's plan and encoded views; all views are encoded."""
        views = iter(self.encoded_views)
        return [(plan, list(islice(views, plan.num_views))) for plan in self.plans]

    def result(self, reason: FinishReason, now_s: float) -> SequenceResult:
        """What is reported once the answer has finished."""
        vision_tokens = sum(plan.num_vision_tokens for plan in self.plans)
        return SequenceResult(
            sequence_id=self.sequence_id,
            text=self.answer.text,
            finish_reason=reason,
            confidence=self.answer.confidence,
            min_confidence=self.answer.min_confidence,
            vision_tokens=vision_tokens,
            prompt_tokens=self.num_prompt_tokens - vision_tokens,
            completion_tokens=len(self.answer.tokens),
            timings=self.stages.timings(now_s),
            token_scores=self.answer.token_scores() if self.wants_token_scores else None,
        )
