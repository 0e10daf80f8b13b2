"""The engines that the service can have: in a child process, or, for tests, in a thread. Free of torch."""

from __future__ import annotations

from service.engine.process.launcher import ProcessWorker, ThreadWorker
from service.engine.process.supervision import Supervision
from service.engine.process.supervisor import SupervisedEngine
from service.engine.process.worker import EngineFactory


class ProcessEngine(SupervisedEngine):
    """An engine in a child process.

    Args:
        factory: Makes the engine in the child; a top-level callable or a partial of one, as it travels by name.
        max_wait_s: Longest batching window: how long an idle engine waits for more pages before its first step.
        num_threads: Threads of a tensor operation in the child; None: torch's own choice.
        supervision: When the process counts as lost and how it comes back.
    """

    def __init__(
        self,
        factory: EngineFactory,
        *,
        max_wait_s: float = 0.0,
        num_threads: int | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        super().__init__(lambda: ProcessWorker(factory, max_wait_s, num_threads), supervision)


class ThreadEngine(SupervisedEngine):
    """An engine in a thread of this process, for tests; the same frames, loop and supervisor.

    Args:
        factory: Makes the engine in its thread.
        max_wait_s: Longest batching window: how long an idle engine waits for more pages before its first step.
        supervision: When the thread counts as lost and how it comes back.
    """

    def __init__(
        self, factory: EngineFactory, *, max_wait_s: float = 0.0, supervision: Supervision | None = None
    ) -> None:
        super().__init__(lambda: ThreadWorker(factory, max_wait_s), supervision)
