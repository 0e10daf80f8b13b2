"""A deterministic engine without a model: its answer is a function of the page's pixels, the prompt and the adapter.

For tests and for trying clients (`DEEPSYNTH_ENGINE=fake`). It implements `protocol.Engine` and runs where the real one
does: in a child process, or in a thread in tests.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from service.engine.lora.registry import NO_ADAPTER, AdapterError, AdapterRegistry
from service.engine.protocol import (
    EngineInfo,
    EngineState,
    EngineStats,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
    SequenceTimings,
)
from shared.contract.answer import FinishReason
from shared.contract.calibration import Calibration
from shared.contract.confidence import TokenScores, score_tokens
from shared.contract.prompts import PAGE_MARK, PromptSet, Task, tasks_of
from shared.deepseek_ocr.forms import without_copies
from shared.deepseek_ocr.geometry import GeometryConfig

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch")
MAX_REMEMBERED_BATCHES = 256


def fake_tokens(request: SequenceRequest, adapter: bytes = b"") -> list[str]:
    """What the fake reads on a page: words chosen by a hash of pixels, prompt, adapter and, where it draws, its seed.

    Args:
        request: The page and what is asked of it.
        adapter: Weights of the adapter that reads it; empty for the base.

    Returns:
        Pieces of text; with a grounding prompt or a query, the first are a labelled box. Each of several pages begins
        with a mark.
    """
    if request.more_pages:
        alone = [replace(request, page=page, more_pages=()) for page in request.pages]
        return [token for each in alone for token in (PAGE_MARK, *fake_tokens(each, adapter))]
    seed = hashlib.sha256()
    for array in request.page.arrays:
        seed.update(without_copies(array).tobytes())
    seed.update(request.prompt.encode())
    seed.update(adapter)
    if request.params.temperature > 0:
        seed.update(f"{request.params.temperature} {request.params.seed}".encode())
    digest = seed.digest()
    words = [WORDS[byte % len(WORDS)] for byte in digest[: 4 + digest[-1] % 8]]
    tokens = [words[0], *(f" {word}" for word in words[1:])]
    if "<|grounding|>" in request.prompt or "<|ref|>" in request.prompt:
        left, top = digest[0], digest[1]
        box = f"[[{left}, {top}, {left + digest[2] + 1}, {top + digest[3] + 1}]]"
        tokens = ["<|ref|>", "text", "<|/ref|>", "<|det|>", box, "<|/det|>", "\n", *tokens]
    return tokens


@dataclass(slots=True)
class _Sequence:
    request: SequenceRequest
    tokens: list[str]
    adapter: int = NO_ADAPTER
    done: list[str] = field(default_factory=list)


class FakeEngine:
    """Reads one word of every running page per step.

    Args:
        batch_size: Pages at once.
        geometry: Of its views.
        fail_with: Maps a prompt, or an adapter's name, to the failure code that its pages meet.
        adapter_slots: Adapters at once.
        refuse_with: Maps an adapter to the reason for which it is refused.
        step_s: Seconds between two words of a page.
        calibration: Of its words; they have probabilities from 1/16 to 1, a hash of their letters.
        tasks: What it can do.
        reads_pages_together: Whether it is asked like Unlimited-OCR, for one page or several.
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        geometry: GeometryConfig | None = None,
        fail_with: dict[str, str] | None = None,
        adapter_slots: int = 0,
        refuse_with: dict[str, str] | None = None,
        step_s: float = 0.0,
        calibration: Calibration | None = None,
        tasks: tuple[Task, ...] = tuple(Task),
        reads_pages_together: bool = False,
    ) -> None:
        prompts = PromptSet.UNLIMITED if reads_pages_together else PromptSet.DEEPSEEK
        self._info = EngineInfo(
            model_id="fake",
            device="cpu",
            dtype="none",
            geometry=geometry or GeometryConfig(),
            max_new_tokens=4096,
            max_sequence_tokens=8192,
            batch_size=batch_size,
            adapter_slots=adapter_slots,
            adapter_max_rank=64 if adapter_slots else 0,
            calibration=calibration,
            tasks=tuple(task for task in tasks if task in tasks_of(prompts)),
            family="fake",
            prompts=prompts,
            reads_pages_together=reads_pages_together,
        )
        self._refuse_with = refuse_with or {}
        self._step_s = step_s
        self._stepped_s = -math.inf
        self._adapters = AdapterRegistry(adapter_slots)
        self._weights: dict[int, bytes] = {}
        self._refused: list[SequenceEvent] = []
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._fail_with = fail_with or {}
        self._steps = 0
        self._batch_sizes: deque[int] = deque(maxlen=MAX_REMEMBERED_BATCHES)

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs, or an event is to be fetched."""
        return bool(self._waiting or self._running or self._refused)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; one for an adapter that is not resident is answered with a failure."""
        slot = NO_ADAPTER if request.model_id == self._info.model_id else self._adapters.find(request.model_id)
        if slot is None:
            self._refused.append(SequenceFailure(request.sequence_id, "model_not_found", "not resident"))
            return
        self._waiting.append(_Sequence(request, fake_tokens(request, self._weights.get(slot, b"")), slot))

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence."""
        self._waiting = deque(entry for entry in self._waiting if entry.request.sequence_id != sequence_id)
        self._running = [entry for entry in self._running if entry.request.sequence_id != sequence_id]

    def step(self) -> list[SequenceEvent]:
        """Admit in order of arrival, then one word each, no sooner than `step_s` after the words before."""
        events, self._refused = self._refused, []
        while self._waiting and len(self._running) < self._info.batch_size:
            self._running.append(self._waiting.popleft())
        missing_s = self._stepped_s + self._step_s - time.monotonic()
        if missing_s > 0:
            # Not all of it, so that commands are heard and counts are current.
            time.sleep(min(missing_s, 0.005))
            return events
        self._stepped_s = time.monotonic()
        self._steps += 1
        self._batch_sizes.append(len(self._running))
        for entry in list(self._running):
            events.extend(self._advance(entry))
        self._adapters.sweep(self._slots_in_use())
        return events

    def _advance(self, entry: _Sequence) -> list[SequenceEvent]:
        request = entry.request
        for told in (request.prompt, request.model_id):
            if told in self._fail_with:
                self._running.remove(entry)
                return [SequenceFailure(request.sequence_id, self._fail_with[told], "told to fail")]
        token = entry.tokens[len(entry.done)]
        entry.done.append(token)
        is_shown = request.is_streamed or len(entry.done) == 1
        events: list[SequenceEvent] = [SequenceDelta(request.sequence_id, token)] if is_shown else []
        complete = len(entry.done) == len(entry.tokens)
        if complete or len(entry.done) == request.params.max_new_tokens:
            self._running.remove(entry)
            events.append(_result(entry, FinishReason.STOP if complete else FinishReason.LENGTH))
        return events

    def stats(self) -> EngineStats:
        """Current counts; the batch sizes are handed out once."""
        sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return EngineStats(EngineState.READY, len(self._waiting), len(self._running), self._steps, sizes)

    @property
    def adapters(self) -> AdapterRegistry:
        """Which adapters are resident; for reading."""
        return self._adapters

    def read_adapter(self, folder: Path) -> bytes:
        """Read an adapter's weights.

        Args:
            folder: With `adapter_model.safetensors`.

        Returns:
            Their bytes.

        Raises:
            AdapterError: They are not there.
        """
        try:
            return (folder / "adapter_model.safetensors").read_bytes()
        except OSError as error:
            raise AdapterError("file_missing", str(error)) from error

    def load_adapter(self, model_id: str, source: bytes) -> None:
        """Make an adapter resident.

        Args:
            model_id: `name@version`.
            source: Its weights.

        Raises:
            AdapterError: There is no slot, the name is taken, or the fake was told to refuse it.
        """
        if model_id in self._refuse_with:
            raise AdapterError(self._refuse_with[model_id], "told to refuse")
        self._adapters.sweep(self._slots_in_use())
        slot = self._adapters.offer_slot(model_id)
        self._weights[slot] = source
        self._adapters.add(model_id, slot)

    def unload_adapter(self, model_id: str) -> bool:
        """Take an adapter out of service; whether its slot is free."""
        self._adapters.drain(model_id)
        self._adapters.sweep(self._slots_in_use())
        return model_id not in self._adapters.draining

    def _slots_in_use(self) -> set[int]:
        return {entry.adapter for entry in (*self._waiting, *self._running)}


def _scores(tokens: list[str], num_alternatives: int = 0) -> TokenScores:
    pieces = [token.encode() for token in tokens]
    logs = [math.log((1 + hashlib.sha256(piece.strip()).digest()[0] % 16) / 16) for piece in pieces]
    scores = score_tokens(pieces, logs)
    if not num_alternatives:
        return scores
    others = [f" {word}".encode() for word in WORDS]
    alternatives = (
        (
            (piece, log),
            *((other, log - rank) for rank, other in enumerate((each for each in others if each != piece), 1)),
        )
        for piece, log in zip(pieces, logs, strict=True)
    )
    return replace(scores, alternatives=tuple(each[:num_alternatives] for each in alternatives))


def _result(entry: _Sequence, reason: FinishReason) -> SequenceResult:
    return SequenceResult(
        sequence_id=entry.request.sequence_id,
        text="".join(entry.done),
        finish_reason=reason,
        confidence=0.875,
        min_confidence=0.5,
        vision_tokens=sum(page.plan.num_vision_tokens for page in entry.request.pages),
        prompt_tokens=len(entry.request.prompt.split()),
        completion_tokens=len(entry.done),
        timings=SequenceTimings(queue_s=0.0, encode_s=0.001, prefill_s=0.001, generate_s=0.001 * len(entry.done)),
        token_scores=_scores(entry.done, entry.request.params.num_alternatives)
        if entry.request.wants_token_scores
        else None,
    )
