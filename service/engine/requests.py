"""Validates requests and makes sequences of them.

Owns the checks before a page is queued, its cost, and the features kept of the last canary. Used by the engine's single
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from service.engine.batch import RunningBatch
from service.engine.canary_features import CanaryFeatures
from service.engine.config import EngineLimits
from service.engine.lora.registry import NO_ADAPTER, AdapterRegistry
from service.engine.protocol import EngineInfo, SequenceFailure, SequenceRequest
from service.engine.scheduler import PageCost
from service.engine.sequence import Answer, PageSequence, Stages, TokenBytes
from shared.deepseek_ocr.tokenizer import OcrTokenizer


class RequestValidator:
    """Makes sequences of requests.

    Args:
        tokenizer: The checkpoint's.
        info: What is loaded.
        limits: What the engine may hold and do.
        pages: The sequences that are here already.
        block_tokens: Unit in which the key and value cache is allocated.
        kept_answer_tokens: Newest answer tokens that it keeps; None: all.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        tokenizer: OcrTokenizer,
        info: EngineInfo,
        limits: EngineLimits,
        pages: RunningBatch,
        block_tokens: int,
        kept_answer_tokens: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = TokenBytes(tokenizer)
        self._info = info
        self._limits = limits
        self._pages = pages
        self._block_tokens = block_tokens
        self._kept_answer_tokens = kept_answer_tokens
        self._clock = clock
        self._canary: CanaryFeatures | None = None

    def make_sequence(self, request: SequenceRequest, adapters: AdapterRegistry) -> PageSequence | SequenceFailure:
        """Check a request.

        Args:
            request: The page, its id unlike that of any sequence still here.
            adapters: Which are resident.

        Returns:
            The sequence, not queued yet; or why there is none.
        """
        name = request.sequence_id
        adapter = NO_ADAPTER if request.model_id == self._info.model_id else adapters.find(request.model_id)
        if adapter is None:
            known = ", ".join((self._info.model_id, *adapters.names))
            return SequenceFailure(name, "model_not_found", f"{request.model_id} is none of {known}")
        error = self._validation_error(request)
        if error:
            return SequenceFailure(name, "engine_failed", error)
        plans = [page.plan for page in request.pages]
        prompt_ids = self._tokenizer.encode_prompt(plans[0], request.prompt, plans[1:])
        room = self._info.max_sequence_tokens - len(prompt_ids)
        max_new_tokens = min(request.params.max_new_tokens, self._info.max_new_tokens, room)
        if max_new_tokens < 1:
            return SequenceFailure(name, "too_many_vision_tokens", f"a prompt of {len(prompt_ids)} tokens")
        canary = self._canary_features(request)
        cost = PageCost(
            name,
            0 if canary and canary.features_LD is not None else sum(plan.num_views for plan in plans),
            len(prompt_ids),
            max_new_tokens,
            self._block_tokens,
            has_priority=request.is_canary,
            kept_answer_tokens=self._kept_answer_tokens,
        )
        return self._pages.refusal(cost) or PageSequence(
            sequence_id=name,
            plans=plans,
            pages=request.pages if cost.num_views else (),
            prompt_ids=prompt_ids,
            answer=Answer(self._token_bytes, self._limits.loop_rule, request.lines),
            stages=Stages(submitted_s=self._clock()),
            cost=cost,
            params=replace(request.params, max_new_tokens=max_new_tokens),
            adapter=adapter,
            canary=canary,
            wants_token_scores=request.wants_token_scores,
            is_streamed=request.is_streamed,
        )

    def _validation_error(self, request: SequenceRequest) -> str | None:
        if request.sequence_id in self._pages:
            return "the id is in use"
        if request.more_pages and not self._info.reads_pages_together:
            return "several pages for a model that reads one at a time"
        faults = (page.find_fault(self._info.geometry) for page in request.pages)
        return request.params.validation_error() or next(filter(None, faults), None)

    def _canary_features(self, request: SequenceRequest) -> CanaryFeatures | None:
        """Features kept of the last canary if this one is the same page; None for other pages."""
        if not request.is_canary:
            return None
        if not (self._canary and self._canary.are_of(request.page)):
            self._canary = CanaryFeatures(request.page)
        return self._canary
