"""Reports on their way from the device, and waiting for it with a timeout.

Owns the order of pending reports. Knows the columns and nothing else of what the numbers mean. Used by the engine's
single thread.

Shape letters: B rows, C columns of a report, V vocabulary, R rows that report alternatives, K of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from service.engine.gpu.paged_cache import to_device
from service.engine.runner import Alternatives, DeviceStuckError, StepOutput
from service.engine.sampling import most_probable

STUCK_S = 30.0
"""The longest step, a full prefill on a small card, takes a few seconds."""
POLL_S = 20e-6
"""Between two queries of an event. Sleeping lets the thread that reads commands run. Pauses of 0 to 200
us give the same 0.607 ms a token of one row and 1.55 ms of 64; the thread takes a fifth to a half of a core, whatever
the pause (H200, de9a6fa, see `kernels.launch`)."""


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used."""

    def query(self) -> bool:
        """Whether the work before it is done."""


def wait_for(event: Event) -> None:
    """Wait for the device; the driver's own wait would never return from work that hangs.

    Args:
        event: Recorded after the work.

    Raises:
        DeviceStuckError: The work did not end in time.
    """
    if event.query():
        return
    deadline_s = time.monotonic() + STUCK_S
    while not event.query():
        if time.monotonic() > deadline_s:
            raise DeviceStuckError(f"the device has not ended its work after {STUCK_S:.0f} s")
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class ReportPart:
    """Some rows of a report on their way to the host."""

    report_BC: Tensor
    wanted: Mapping[int, int] = field(default_factory=dict)
    """How many alternatives rows report, by their index; as `tops_R2K` has them in its rows."""
    tops_R2K: Tensor | None = None
    """Ids, then the bits of the logarithms of their probabilities, int32; falling."""


@dataclass(frozen=True, slots=True)
class _PendingReport:
    """A report on its way to the host, in parts; complete once the event is done."""

    parts: Sequence[ReportPart]
    event: torch.cuda.Event | None


class Reports:
    """Pending reports, oldest first.

    Args:
        device: Whose stream the reports are enqueued on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[_PendingReport] = deque()

    def to_host(self, report_BC: Tensor, logits_BV: Tensor | None, wanted: Mapping[int, int]) -> ReportPart:
        """Enqueue the copy of a report's rows; they may be read once it has been collected.

        Args:
            report_BC: The rows.
            logits_BV: What their tokens were chosen by; None if none is wanted.
            wanted: How many alternatives rows are asked for, by their index; others are asked for none.

        Returns:
            The part of the report.
        """
        if not wanted:
            return ReportPart(self._copy(report_BC))
        assert logits_BV is not None
        rows_R = to_device(np.array(list(wanted)), self._device)
        ids_RK, logs_RK = most_probable(logits_BV[rows_R], max(wanted.values()))
        tops_R2K = torch.cat((ids_RK.int(), logs_RK.contiguous().view(torch.int32)), dim=1)
        return ReportPart(self._copy(report_BC), wanted, self._copy(tops_R2K))

    def _copy(self, numbers: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return numbers.clone()
        host = torch.empty(numbers.shape, dtype=torch.int32, pin_memory=True)
        return host.copy_(numbers, non_blocking=True)

    def add(self, parts: Sequence[ReportPart]) -> None:
        """Add a report whose rows are all being copied."""
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
        self._pending.append(_PendingReport(parts, event))

    def collect(self) -> StepOutput | None:
        """Wait for the oldest pending report and take it; None if there is none."""
        if not self._pending:
            return None
        report = self._pending.popleft()
        if report.event:
            wait_for(report.event)
        rows = np.concatenate([part.report_BC.numpy() for part in report.parts])
        tokens, bits, statuses, arguments = np.ascontiguousarray(rows.T)
        output = StepOutput(tokens.tolist(), bits.view(np.float32).tolist(), statuses.tolist(), arguments.tolist())
        first = 0
        for part in report.parts:
            output.alternatives |= {first + row: each for row, each in _alternatives(part)}
            first += len(part.report_BC)
        return output


def _alternatives(part: ReportPart) -> Iterator[tuple[int, Alternatives]]:
    """Rows that are asked for alternatives, with theirs."""
    if part.tops_R2K is None:
        return
    ids_RK, bits_RK = np.split(part.tops_R2K.numpy(), 2, axis=1)
    logs_RK = np.ascontiguousarray(bits_RK).view(np.float32)
    for (row, count), ids, logs in zip(part.wanted.items(), ids_RK, logs_RK, strict=True):
        yield row, list(zip(ids[:count].tolist(), logs[:count].tolist(), strict=True))
