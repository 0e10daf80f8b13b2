"""What the engine takes and gives, and how the rest of the service talks to it. Free of torch.

Two seams. `Engine` is the device side: synchronous, single-threaded, advanced by `step`, so that sequences join and
leave between steps. `EngineHandle` is the service side: asynchronous, safe to use from the event loop, backed by
the process (or, in tests, the thread) that owns an `Engine`.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from shared.contract.answer import FinishReason
from shared.contract.calibration import Calibration
from shared.contract.confidence import TokenScores
from shared.contract.prompts import PromptSet, Task
from shared.deepseek_ocr.forms import PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, count_vision_tokens, global_view_px
from shared.deepseek_ocr.registry import V1
from shared.images.page_ink import InkLine

TOGETHER_MODE = Mode.BASE
"""Mode of pages that are read together: the published recipe has no tiles then."""
ANSWER_TOKENS_TOGETHER = 256
"""Room for a page's answer and its share of the prompt without which no page is added to a pass."""
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 20
"""Most probable tokens that can be asked for at each place; as many as OpenAI's API has."""


class EngineState(StrEnum):
    """Life of the engine as readiness and metrics report it."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How an answer is generated: one record from the form to the device."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 chooses the most probable token; above it, tokens are drawn."""
    seed: int | None = None
    """Of a document, any integer of 64 bits; of a page, 0 to `MAX_SEED`. None where nothing is drawn."""
    num_alternatives: int = 0
    """Most probable tokens to report at each place, 0 to `MAX_ALTERNATIVES`; they come with the token scores."""

    def for_page(self, page: int) -> SamplingParams:
        """The parameters of one page: its seed is 63 bits of the SHA-256 of `SEED:PAGE`, in decimal.

        Args:
            page: Its number in the document, from 1, so that a selection of pages draws what the whole document does.

        Returns:
            These parameters if nothing is drawn, else a copy with the page's seed.
        """
        if self.seed is None:
            return self
        digest = hashlib.sha256(f"{self.seed}:{page}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:8], "big") & MAX_SEED)

    def validation_error(self) -> str | None:
        """Why a page cannot be read with these; None: it can."""
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            return f"a temperature of {self.temperature}"
        if self.temperature and self.seed is None:
            return "a temperature without a seed"
        if not 0 <= self.num_alternatives <= MAX_ALTERNATIVES:
            return f"{self.num_alternatives} alternatives"
        return None if 0 <= (self.seed or 0) <= MAX_SEED else f"a seed of {self.seed}"


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One page to read, or several in one pass."""

    sequence_id: str
    page: PreparedPage
    prompt: str
    params: SamplingParams
    model_id: str
    """Base model, or an adapter as `name@version`."""
    is_canary: bool = False
    """Tests an adapter: read before all waiting pages, and encoded once, as every canary is the same page."""
    wants_token_scores: bool = False
    lines: tuple[InkLine, ...] = ()
    """The page's print, by which true rows are told from a loop; none: the loop rule decides alone."""
    more_pages: tuple[PreparedPage, ...] = ()
    """Pages after the first, read in the same pass; only where `EngineInfo.reads_pages_together`."""
    is_alone: bool = False
    """No other page is on its way, so that an idle engine need not wait for one."""
    is_streamed: bool = True
    """Whether its text is shown while it grows. Otherwise only its first text is, which tells when it came."""

    @property
    def pages(self) -> tuple[PreparedPage, ...]:
        """All pages, in the order of the prompt."""
        return (self.page, *self.more_pages)


@dataclass(frozen=True, slots=True)
class SequenceTimings:
    """Seconds a sequence spent in each stage of the engine."""

    queue_s: float
    encode_s: float
    prefill_s: float
    generate_s: float


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """Text that a step added to a sequence; those of a streamed one join to the result's text."""

    sequence_id: str
    text: str
    kind: Literal["delta"] = "delta"


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """A finished sequence; exactly one per accepted request that was not cancelled."""

    sequence_id: str
    text: str
    """Decoded answer with its special tokens (`<|ref|>` and kin) kept and the end token left out."""
    finish_reason: FinishReason
    confidence: float
    """Geometric mean of the chosen tokens' probabilities, 0 to 1."""
    min_confidence: float
    """The lowest of them."""
    vision_tokens: int
    prompt_tokens: int
    completion_tokens: int
    timings: SequenceTimings
    token_scores: TokenScores | None = None
    """Of the text; None unless the request wants them."""
    kind: Literal["result"] = "result"


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """A sequence that the engine could not finish; `code` is stable, `detail` is for the log alone."""

    sequence_id: str
    code: str
    detail: str
    kind: Literal["failure"] = "failure"


SequenceEvent = SequenceDelta | SequenceResult | SequenceFailure


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine loaded; fixed once it is ready."""

    model_id: str
    device: str
    dtype: str
    geometry: GeometryConfig
    max_new_tokens: int
    max_sequence_tokens: int
    batch_size: int
    prepares_views: bool = False
    """Whether the device makes views of images; every engine takes both forms of a page, this says which to send."""
    skips_padding: bool = False
    """Whether a low canvas of lines costs less than one that fills its view."""
    steps: str = ""
    """How a CPU decodes canvases, for the log: `compiled` and for what, and how many drafts, or `torch` and why; empty
    on a GPU."""
    canvases: str = ""
    """How a CPU reads them before: `bfloat16`, `compiled`, or `torch` and why; empty on a GPU."""
    adapter_slots: int = 0
    """Adapters that can be resident at once."""
    adapter_max_rank: int = 0
    """Largest rank of one."""
    calibration: Calibration | None = None
    """Of the base model; None if its checkpoint has none."""
    tasks: tuple[Task, ...] = tuple(Task)
    """What the base model can do."""
    family: str = V1.family
    """Which model of the family it is, as users call it."""
    prompts: PromptSet = PromptSet.DEEPSEEK
    """What it is asked with."""
    reads_pages_together: bool = False
    """Whether one sequence may have several pages."""

    @property
    def max_pages_together(self) -> int:
        """Pages of one sequence at most; 1 if each page is read alone."""
        if not self.reads_pages_together:
            return 1
        vision_tokens = count_vision_tokens(global_view_px(TOGETHER_MODE, self.geometry), 0, 0, self.geometry)
        return max(1, self.max_sequence_tokens // (vision_tokens + ANSWER_TOKENS_TOGETHER))


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A reading of the engine's state, cheap enough for each scrape."""

    state: EngineState
    waiting: int = 0
    running: int = 0
    steps: int = 0
    batch_sizes: tuple[int, ...] = ()
    """Sizes of the decode batches since the last reading, newest last, bounded."""
    device_memory_bytes: int = 0
    seconds_since_progress: float = 0.0
    drafted_tokens: int = 0
    """Tokens that steps checked because they were drafted; since the engine's start, as `steps`."""
    accepted_tokens: int = 0
    """Those of them that were right."""


@dataclass(frozen=True, slots=True)
class EngineLife:
    """How the engine has fared since the service started, and when it is expected back."""

    losses: Mapping[str, int]
    """How often it was lost or could not be restarted, by kind; each is followed by a restart until it stays down."""
    num_retried: int
    """Pages that were lost with it and read again."""
    num_refused: int
    """Pages refused because they were in work at two of its deaths."""
    is_down: bool
    """Whether it stays down: it was lost again and again without health between."""
    ready_in_s: float
    """Seconds until it should be ready, from what its last start took; 0 while it is."""


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """What making an adapter resident cost the engine, in seconds."""

    read_s: float
    """Reading its files, while steps run."""
    place_s: float
    """Copying it into its slot, between two steps."""


class ResidentNames(Protocol):
    """Which adapters an engine holds."""

    @property
    def names(self) -> Collection[str]:
        """Those that new sequences may use."""

    @property
    def draining(self) -> Collection[str]:
        """Those that leave with their last sequence."""


class Engine(Protocol):
    """The device side; one thread calls everything except `read_adapter`."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""

    def warm_up(self) -> None:
        """Read one synthetic page, so that the first request pays for nothing."""

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; it joins at a coming step."""

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence before the next step; unknown ones are ignored."""

    def step(self) -> list[SequenceEvent]:
        """Admit what fits, advance every running sequence by one token, and report what changed."""

    def stats(self) -> EngineStats:
        """Current counts."""

    @property
    def adapters(self) -> ResidentNames:
        """Which adapters are resident; for reading."""

    def read_adapter(self, folder: Path) -> Any:
        """Read an adapter's files into memory, from any thread.

        Args:
            folder: A PEFT folder that no one else changes.

        Returns:
            What `load_adapter` takes.

        Raises:
            AdapterError: They cannot be read.
        """

    def load_adapter(self, model_id: str, source: Any) -> None:
        """Make an adapter resident between two steps.

        Args:
            model_id: `name@version`; never used for anything else before.
            source: What `read_adapter` gave.

        Raises:
            AdapterError: It cannot be, and nothing has changed.
        """

    def unload_adapter(self, model_id: str) -> bool:
        """Take an adapter out of service: at once for new sequences, for good with its last one.

        Args:
            model_id: Its name.

        Returns:
            Whether its slot is free; else it drains.

        Raises:
            AdapterError: It is not loaded.
        """


class EngineHandle(Protocol):
    """The service side; every method is called from the event loop and never blocks it."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded; only once `state` is ready."""

    @property
    def state(self) -> EngineState:
        """Life of the engine."""

    @property
    def life(self) -> EngineLife:
        """How it has fared, and when it is expected to be ready."""

    async def start(self) -> None:
        """Load, warm up and return when ready.

        Raises:
            EngineError: The engine could not start.
        """

    def submit(self, request: SequenceRequest) -> AsyncIterator[SequenceEvent]:
        """Read one page; closing the iterator cancels the sequence.

        The last event is a `SequenceResult` or a `SequenceFailure`. A page that is lost with the engine is read once
        more; if it cannot be soon, the failure is `engine_lost`, and if it was in work at two deaths `poison_request`.
        """

    @property
    def adapters(self) -> Collection[str]:
        """Adapters that sequences may name; a restarted engine loads them again."""

    async def load_adapter(self, model_id: str, folder: Path) -> AdapterLoad:
        """Load an adapter while sequences run.

        Args:
            model_id: `name@version`; never used for another content.
            folder: A PEFT folder that does not change while the adapter is loaded.

        Returns:
            What it cost.

        Raises:
            AdapterError: It cannot be; what is served is not touched.
            EngineLostError: The engine is not ready, or was lost.
        """

    async def unload_adapter(self, model_id: str) -> None:
        """Unload an adapter, and return when its slot is free.

        Args:
            model_id: Its name; ignored if it is not loaded.

        Raises:
            EngineLostError: The engine is not ready, or was lost; it will not load the adapter again.
        """

    async def stats(self) -> EngineStats:
        """Current counts, at most a few seconds old."""

    async def stop(self) -> None:
        """End the engine and free the device."""
