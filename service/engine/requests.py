"""From a request to a sequence that may wait, or to what is wrong with it.

Owns the checks before a page waits, what it costs, and the features kept of the last canary. Used by the engine's
single thread.
"""

from __future__ import annotations

from collections.abc import Callable

from service.engine.batch import Pages
from service.engine.canary_features import CanaryFeatures
from service.engine.config import EngineLimits
from service.engine.lora.registry import NO_ADAPTER, AdapterRegistry
from service.engine.protocol import EngineInfo, SequenceFailure, SequenceRequest
from service.engine.scheduler import PageCost
from service.engine.sequence import Answer, PageSequence, Stages, TokenBytes
from shared.deepseek_ocr.tokenizer import OcrTokenizer


class Intake:
    """Makes sequences of requests.

    Args:
        tokenizer: The checkpoint's.
        info: What is loaded.
        limits: What the engine may hold and do.
        pages: Those that are here already.
        block_tokens: Tokens of key and value cache that are had together.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        tokenizer: OcrTokenizer,
        info: EngineInfo,
        limits: EngineLimits,
        pages: Pages,
        block_tokens: int,
        clock: Callable[[], float],
    ) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = TokenBytes(tokenizer)
        self._info = info
        self._limits = limits
        self._pages = pages
        self._block_tokens = block_tokens
        self._clock = clock
        self._canary: CanaryFeatures | None = None

    def take(self, request: SequenceRequest, adapters: AdapterRegistry) -> PageSequence | SequenceFailure:
        """Judge a request.

        Args:
            request: The page, its id unlike that of any sequence still here.
            adapters: Which are resident.

        Returns:
            The sequence, which nobody has seen yet; or why there is none.
        """
        name = request.sequence_id
        adapter = NO_ADAPTER if request.model_id == self._info.model_id else adapters.find(request.model_id)
        if adapter is None:
            known = ", ".join((self._info.model_id, *adapters.names))
            return SequenceFailure(name, "model_not_found", f"{request.model_id} is none of {known}")
        fault = self._find_fault(request)
        if fault:
            return SequenceFailure(name, "engine_failed", fault)
        prompt_ids = self._tokenizer.encode_prompt(request.page.plan, request.prompt)
        room = self._info.max_sequence_tokens - len(prompt_ids)
        max_new_tokens = min(request.max_new_tokens, self._info.max_new_tokens, room)
        if max_new_tokens < 1:
            return SequenceFailure(name, "too_many_vision_tokens", f"a prompt of {len(prompt_ids)} tokens")
        canary = self._canary_features(request)
        cost = PageCost(
            name,
            0 if canary and canary.features_LD is not None else 1 + request.page.plan.num_tiles,
            len(prompt_ids),
            max_new_tokens,
            self._block_tokens,
            goes_first=request.is_canary,
        )
        return self._pages.refusal(cost) or PageSequence(
            sequence_id=name,
            plan=request.page.plan,
            page=request.page if cost.num_views else None,
            prompt_ids=prompt_ids,
            answer=Answer(self._token_bytes, self._limits.loop_rule.suspicion),
            stages=Stages(submitted_s=self._clock()),
            cost=cost,
            adapter=adapter,
            temperature=request.temperature,
            seed=request.seed,
            canary=canary,
        )

    def _find_fault(self, request: SequenceRequest) -> str | None:
        if request.sequence_id in self._pages:
            return "the id is in use"
        return request.find_fault() or request.page.find_fault(self._info.geometry)

    def _canary_features(self, request: SequenceRequest) -> CanaryFeatures | None:
        """Those kept of the last canary, where this one is the same page; None for any other page."""
        if not request.is_canary:
            return None
        if not (self._canary and self._canary.are_of(request.page)):
            self._canary = CanaryFeatures(request.page)
        return self._canary
