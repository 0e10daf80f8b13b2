"""Reports on their way from the device, and waiting for it with an eye on the clock.

Owns the order of what is owed. Knows nothing of what the numbers mean beyond their columns. Used by the engine's single
thread.

Shape letters: B rows, C columns of a report.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from service.engine.gpu.state import REPORT_COLUMNS
from service.engine.runner import DeviceStuckError, StepOutput

STUCK_S = 30.0
"""The longest step there is, a full prefill on a small card, takes a few seconds."""
POLL_S = 20e-6
"""Between two looks at whether an event has come. Sleeping lets the thread that reads commands run. Pauses of 0 to 200
us give the same 0.607 ms a token of one row and 1.55 ms of 64; the thread takes a fifth to a half of a core, whatever
the pause (H200, de9a6fa, see `kernels.launch`)."""


class Event(Protocol):
    """What is asked of a CUDA event."""

    def query(self) -> bool:
        """Whether it has come."""


def wait_for(event: Event) -> None:
    """Wait for the device: the driver's own wait would never come back from work that hangs.

    Args:
        event: Behind the work.

    Raises:
        DeviceStuckError: It did not come in time.
    """
    if event.query():
        return
    deadline_s = time.monotonic() + STUCK_S
    while not event.query():
        if time.monotonic() > deadline_s:
            raise DeviceStuckError(f"the device has not ended its work after {STUCK_S:.0f} s")
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class _Owed:
    """A report on its way to the host, in parts; complete once the event has come."""

    parts: Sequence[Tensor]
    event: torch.cuda.Event | None


class Reports:
    """What is owed, oldest first.

    Args:
        device: Whose stream the reports are enqueued on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._owed: deque[_Owed] = deque()

    def to_host(self, report_BC: Tensor) -> Tensor:
        """Enqueue the copy of a report's rows; they may be read once it has been collected."""
        if self._device.type != "cuda":
            return report_BC.clone()
        host_BC = torch.empty((len(report_BC), REPORT_COLUMNS), dtype=torch.int32, pin_memory=True)
        return host_BC.copy_(report_BC, non_blocking=True)

    def owe(self, parts: Sequence[Tensor]) -> None:
        """Note a report whose rows are all under way."""
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
        self._owed.append(_Owed(parts, event))

    def collect(self) -> StepOutput | None:
        """Wait for the oldest report that is owed and take it; None where none is owed."""
        if not self._owed:
            return None
        owed = self._owed.popleft()
        if owed.event:
            wait_for(owed.event)
        rows = np.concatenate([part.numpy() for part in owed.parts])
        tokens, bits, statuses, arguments = np.ascontiguousarray(rows.T)
        return StepOutput(tokens.tolist(), bits.view(np.float32).tolist(), statuses.tolist(), arguments.tolist())
