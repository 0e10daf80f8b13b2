"""Prepares versions for service: copy and verify the files, load them into the engine, read the canary page.

Owns the order of these stages, what each failure means, and the task that prepares one version after another. The
catalog decides which. Runs on the event loop and reads files in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial

from service.adapters.cache import LoraCache
from service.adapters.canary import CanaryError, read_canary
from service.adapters.metrics import AdapterObserver, LoadObserver
from service.adapters.storage import Storage
from service.adapters.threads import in_thread
from service.adapters.versions import AdapterVersion, Refusal, ServiceReason
from service.engine.lora.registry import AdapterError
from service.engine.protocol import EngineHandle, EngineState
from service.errors import AdapterNotReadyError, EngineLostError
from shared.contract.prompts import Task
from shared.contract.refusals import AdapterRefusedError, Reason, VolumeError
from shared.contract.verification import ServingPolicy, VerifiedAdapter, verify
from shared.contract.volume import AdapterVolume

CANARY_TIMEOUT_S = 60.0
MAX_LOSSES = 2
"""Engines lost with a version after which the version is refused."""
FIRST_RETRY_S, MAX_RETRY_S = 1.0, 30.0
_OF_THE_COPY = frozenset({Reason.FILE_MISSING, Reason.HEADER_INVALID, Reason.CONFIG_NOT_JSON})
"""Reasons of the engine that mean a broken copy, since the adapter passed verification."""

_log = logging.getLogger(__name__)


class _FaultError(Exception):
    """The adapter is not to blame; the version will be tried again."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class AdapterLoader:
    """Prepares one version at a time.

    Args:
        volume: Source of versions.
        storage: Destination of their copies.
        policy: What an adapter must satisfy.
        cache: Loads adapters.
        engine: Reads the canary page.
        observer: Counts and traces.
        on_settled: Called when a version has passed, was refused, or will be tried again.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        volume: AdapterVolume,
        storage: Storage,
        policy: ServingPolicy,
        cache: LoraCache,
        engine: EngineHandle,
        observer: AdapterObserver,
        on_settled: Callable[[AdapterVersion], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._storage = storage
        self._policy = policy
        self._cache = cache
        self._engine = engine
        self._observer = observer
        self._on_settled = on_settled
        self._clock = clock
        self._queue: dict[str, tuple[AdapterVersion, asyncio.Future[None]]] = {}
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name="adapter-loader")

    async def stop(self) -> None:
        """Stop the task; requests that wait fail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for _, future in self._queue.values():
            future.cancel()

    def request(self, version: AdapterVersion) -> asyncio.Future[None]:
        """Queue a version, unless it is queued already.

        Args:
            version: Neither passed nor refused, or without its copy.

        Returns:
            Done when the version is settled.
        """
        queued = self._queue.get(version.model_id)
        if queued is None:
            queued = self._queue[version.model_id] = (version, asyncio.get_running_loop().create_future())
            self._has_work.set()
        return queued[1]

    def is_busy_with(self, version: AdapterVersion) -> bool:
        """Whether a version is queued or being prepared."""
        return version.model_id in self._queue

    async def wait(self, version: AdapterVersion, wait_s: float) -> None:
        """Queue a version and wait until it is settled.

        Args:
            version: As for `request`.
            wait_s: Maximum time.

        Raises:
            AdapterNotReadyError: It took longer, or must be tried again.
        """
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.shield(self.request(version))
        except TimeoutError:
            raise AdapterNotReadyError(f"{version.model_id} was not prepared within {wait_s} s") from None
        except asyncio.CancelledError:
            if self._task is None or self._task.done():
                raise AdapterNotReadyError("the service is stopping") from None
            raise
        if version.fault is not None:
            raise AdapterNotReadyError(f"{version.model_id}: {version.fault}")

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._queue:
                model_id, (version, future) = next(iter(self._queue.items()))
                try:
                    await self._prepare(version)
                except Exception:  # noqa: BLE001 -- the boundary: one adapter must not end the task for all others
                    _log.exception("%s could not be prepared", model_id)
                    self._note_fault(version, "internal_error")
                del self._queue[model_id]
                if not future.done():
                    future.set_result(None)
                self._on_settled(version)

    async def _prepare(self, version: AdapterVersion) -> None:
        with self._observer.loading(version.reference, version.stages_s) as load:
            try:
                await self._run_stages(version, load)
            except AdapterRefusedError as error:
                self._refuse(version, load, Refusal(error.reason, error.detail))
            except CanaryError as error:
                self._refuse(version, load, Refusal(ServiceReason.CANARY_FAILED, str(error)))
            except VolumeError as error:
                self._note_fault(version, error.code)
            except _FaultError as error:
                self._note_fault(version, error.code)
            else:
                version.has_passed, version.fault, version.num_faults = True, None, 0
                load.passed(self._clock() - version.seen_at_s)

    async def _run_stages(self, version: AdapterVersion, load: LoadObserver) -> None:
        if version.copy is None:
            with load.stage("verify"):
                version.copy = await self._verify(version)
        load.note_size(version.copy.manifest.files[version.copy.weights_path.name].size_bytes)
        was_ready = self._engine.state is EngineState.READY
        try:
            with load.stage("place"):
                hold = await self._cache.hold(version.model_id, version.copy.folder)
            try:
                if not version.has_passed:
                    with load.stage("canary"):
                        await read_canary(self._engine, version.model_id, timeout_s=CANARY_TIMEOUT_S)
            finally:
                hold.release()
        except AdapterError as error:
            self._raise_refusal(version, error)
        except (AdapterNotReadyError, TimeoutError):
            raise _FaultError("engine_busy") from None
        except EngineLostError as error:
            version.num_losses += was_ready
            if version.num_losses >= MAX_LOSSES:
                raise CanaryError(f"{version.num_losses} engines were lost with it") from error
            raise _FaultError("engine_lost") from None

    async def _verify(self, version: AdapterVersion) -> VerifiedAdapter:
        folder = self._storage.new_copy(version.reference)
        work = partial(verify, self._volume, version.reference, folder, self._policy)
        copy = await in_thread(work, "adapter-verification")
        digest = copy.manifest.files[copy.weights_path.name].sha256
        if version.weights_sha256 not in {None, digest}:
            self._storage.drop_copy(copy.folder)
            raise AdapterRefusedError(Reason.CHECKSUM_MISMATCH, "other weights than this version had before")
        version.weights_sha256 = digest
        evaluation = copy.manifest.evaluation
        version.task = next((task for task in Task if evaluation and evaluation.task == str(task)), None)
        return copy

    def _raise_refusal(self, version: AdapterVersion, error: AdapterError) -> None:
        """Translate the engine's refusal: of the adapter, of its copy, or of any adapter at this time."""
        known = {str(reason): reason for reason in Reason}
        if error.reason in known and known[error.reason] not in _OF_THE_COPY:
            raise AdapterRefusedError(known[error.reason], str(error).removeprefix(f"{error.reason}: ")) from error
        if error.reason in known:
            self._drop_copy(version)
        raise _FaultError(error.reason) from error

    def _refuse(self, version: AdapterVersion, load: LoadObserver, refusal: Refusal) -> None:
        load.refused(refusal.reason)
        version.refusal, version.fault = refusal, None
        self._observer.refused(refusal.reason)
        self._storage.record(
            "refused", who="checks", why=refusal.detail, reason=refusal.reason,
            name=version.reference.name, version=version.reference.version,
        )  # fmt: skip
        self._cache.retire(version.model_id)
        self._drop_copy(version)

    def _note_fault(self, version: AdapterVersion, code: str) -> None:
        version.fault = code
        version.retry_at_s = self._clock() + min(FIRST_RETRY_S * 2**version.num_faults, MAX_RETRY_S)
        version.num_faults = min(version.num_faults + 1, 10)
        _log.warning("%s could not be prepared: %s", version.model_id, code)

    def _drop_copy(self, version: AdapterVersion) -> None:
        if version.copy is not None:
            self._storage.drop_copy(version.copy.folder)
            version.copy = None
