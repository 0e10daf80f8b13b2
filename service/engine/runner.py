"""The interface between the engine and a device: `Runner` and its messages. Free of torch at run time.

Implemented by `cpu.runner.CpuRunner` (plain torch, any device) and `gpu.runner.GpuRunner` (CUDA). A runner knows slots,
not sequences. One thread calls everything except `pack_adapter`.

Work is enqueued in the order of the calls, and outputs come back in that order: `open` and `launch` each produce one
`StepOutput`, and only `collect` waits for it. So the caller may launch step t + 1 before it has read step t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Union

import numpy as np
from numpy.typing import NDArray

from service.engine.lora.registry import NO_ADAPTER
from service.engine.protocol import SamplingParams
from shared.deepseek_ocr.forms import PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, ViewPlan

if TYPE_CHECKING:
    from torch import Tensor

    from service.engine.lora.bank import PackedAdapter
    from service.engine.lora.files import AdapterFiles


View = Union[NDArray[np.uint8], "Tensor"]
"""`[px, px, 3]`, uint8, RGB; on the host, or already on the device."""


class DeviceFullError(RuntimeError):
    """The device has no memory for one piece of work, however small it was cut; what runs is not touched."""


class DeviceStuckError(RuntimeError):
    """A step did not end in time; the process that owns the device has to be replaced."""


@dataclass(frozen=True, slots=True)
class NewRow:
    """A prompt to read, and where its answer goes."""

    slot: int
    prompt_ids: Sequence[int]
    features_LD: Any
    """What `Runner.assemble` gave."""
    params: SamplingParams
    adapter: int = NO_ADAPTER
    """Slot of the adapter that answers."""


Alternatives = Sequence[tuple[int, float]]
"""Most probable tokens with the natural logarithms of their probabilities, falling; before bans, at temperature 1."""


@dataclass(slots=True)
class StepOutput:
    """The tokens that one `open` or `launch` chose: lists with an entry per token, slots in the order of the call."""

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    """Natural logarithms; not finite where the status is FAULT."""
    statuses: list[int] = field(default_factory=list)
    """Values of `shared.contract.answer.TokenStatus`."""
    arguments: list[int] = field(default_factory=list)
    """With LOOP: answer tokens up to the end of the loop's first period; else the longest run of repeated tokens."""
    alternatives: dict[int, Alternatives] = field(default_factory=dict)
    """By index in the lists, of the slots whose parameters ask for them."""
    counts: list[int] = field(default_factory=list)
    """Tokens of each slot, at least 1, which follow one another; empty: one each."""
    num_drafted: int = 0
    """Drafted tokens that were checked; those of a slot's tokens that are not its first were right."""


class Runner(Protocol):
    """A model on its device, with slots for the answers it is working on."""

    @property
    def depth(self) -> int:
        """Step outputs that may be pending when the next step is launched; 0 where waiting costs nothing."""

    @property
    def prepares_views(self) -> bool:
        """Whether it takes pages as images and makes the views itself."""

    @property
    def skips_padding(self) -> bool:
        """Whether a low canvas of lines costs less than one that fills its view."""

    @property
    def steps(self) -> str:
        """How a CPU decodes canvases: `compiled`, with drafts or without, or `torch` and why; empty on a GPU."""

    @property
    def canvases(self) -> str:
        """How a CPU reads them before: `bfloat16`, `compiled`, or `torch` and why; empty on a GPU."""

    @property
    def kv_tokens(self) -> int:
        """Key and value tokens that all slots hold together."""

    @property
    def block_tokens(self) -> int:
        """Unit in which a slot's share of them is counted; a slot takes whole blocks."""

    @property
    def kept_answer_tokens(self) -> int | None:
        """Newest answer tokens whose keys a slot keeps; None: all."""

    def warm_up(self) -> None:
        """Do one-time work that would otherwise slow the first steps."""

    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[Any]:
        """All views of a page, the global one first, where `encode` takes them from.

        Args:
            page: In either form.
            geometry: The checkpoint's.

        Returns:
            `[px, px, 3]` each, uint8, or another form of the runner's own.

        Raises:
            DeviceFullError: There is no memory for them.
        """

    def encode(self, views: Sequence[Any]) -> Sequence[Any]:
        """Encode views, those of one size together.

        Args:
            views: From `prepare`, of any pages.

        Returns:
            `[N, D]` for each, in their order, or another form of the runner's own.

        Raises:
            DeviceFullError: Not even one view at a time fits.
        """

    def assemble(self, pages: Sequence[tuple[ViewPlan, Sequence[Any]]]) -> Any:
        """Join the encoded views of a prompt's pages, the global one first among each page's.

        Args:
            pages: Plan and views of each, in the order of the prompt.

        Returns:
            `[L, D]`, as many vectors as the prompt has image tokens, or another form of the runner's own.
        """

    def open(self, rows: Sequence[NewRow]) -> None:
        """Read prompts into free slots and choose their first tokens."""

    def launch(self, slots: Sequence[int]) -> None:
        """Choose one more token for these slots, or several where they were drafted, but no more than `max_new_tokens`.

        A slot whose answer has ended stays as it is.
        """

    def collect(self) -> StepOutput | None:
        """Wait for the oldest pending output and take it.

        Returns:
            The output; None if none is pending.

        Raises:
            DeviceStuckError: It did not come.
        """

    def rewind(self, slot: int, *, kept: int, newest_token: int, forbidden: int | None) -> None:
        """Let an answer go on from an earlier token, or one whose status was LOOP from its last.

        Args:
            slot: Its slot.
            kept: Answer tokens kept, at least 1.
            newest_token: The last of them.
            forbidden: With a second attempt, the token that led into the loop; None: there are no bans.
        """

    def close(self, slot: int) -> None:
        """Free a slot; pending outputs may still refer to it."""

    def pack_adapter(self, files: AdapterFiles) -> PackedAdapter:
        """Validate an adapter and convert its weights to the model's type; any thread may call it while steps run.

        Args:
            files: As PEFT writes them.

        Returns:
            For `load_adapter`.

        Raises:
            AdapterError: It does not fit the model or the slots.
        """

    def load_adapter(self, adapter: int, packed: PackedAdapter) -> None:
        """Put an adapter into an adapters' slot that no open row uses; rows opened afterwards may name it.

        Args:
            adapter: Its slot.
            packed: What `pack_adapter` gave.
        """

    def device_memory_bytes(self) -> int:
        """Memory that tensors hold on the device; 0 on a CPU, whose memory the process shares with all else."""

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
