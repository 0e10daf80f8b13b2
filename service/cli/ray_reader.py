"""Reads files with engines on a Ray cluster: workers in any number of processes on any number of machines.

The command fetches documents and keeps their results, as it does with an engine of its own; workers get bytes and give
answers. A worker that is lost is made again by Ray, and its documents go to others. Imported where `--on ray` is given,
and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from service.cli.inputs import InputFile
from service.cli.local_reader import LocalReader, local_reader
from service.cli.reading import FileError, OptionError, Reading, ReadOptions, ServiceUnreachableError, error_of, load
from service.config import Device, EngineKind, ServiceSettings
from service.errors import EngineError, UploadTooLargeError

MAX_LOSSES = 5
"""A document whose workers were lost so often is one of the failures, with the code `worker_lost`."""
FIRST_WORKER_NOTICE_S = 60.0
RETURN_PAUSE_S = 1.0
"""Between two questions to a lost worker."""
STOP_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a worker has no answer; exceptions of ours would not survive the way through Ray as they are."""

    error: type[FileError] | type[OptionError] | type[EngineError]
    arguments: tuple[Any, ...]

    def raised(self) -> FileError | OptionError | EngineError:
        """The exception that it was."""
        return self.error(*self.arguments)


class BulkWorker:
    """An engine with its image processes, as a Ray actor. Starts them when it is first asked, also after a restart."""

    def __init__(self, settings: ServiceSettings, options: ReadOptions, jobs: int | None) -> None:
        self._starting = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._settings, self._options, self._jobs = settings, options, jobs
        self._reader: LocalReader | None = None

    async def start(self) -> int | Refusal:
        """Start the engine where it does not run; returns how many documents this worker reads at once."""
        async with self._starting:
            if self._reader is None:
                starting = local_reader(self._settings, self._options, None, self._jobs, b"")
                try:
                    self._reader = await self._stack.enter_async_context(starting)
                except EngineError as error:
                    return Refusal(EngineError, (str(error),))
            return self._reader.jobs

    async def read(self, file: InputFile) -> Reading | Refusal:
        """Read a document whose bytes came along."""
        if isinstance(refusal := await self.start(), Refusal):
            return refusal
        assert self._reader is not None
        try:
            return await self._reader.read(file)
        except FileError as error:
            return Refusal(FileError, (error.code, error.title, error.facts))
        except (OptionError, EngineError) as error:
            return Refusal(type(error), (str(error),))

    async def stop(self) -> None:
        """Stop the engine and the image processes."""
        await self._stack.aclose()


@dataclass(eq=False, slots=True)
class _Place:
    """A worker as the command sees it."""

    actor: Any
    num_reading: int = 0
    is_there: bool = False


class RayReader:
    """Gives each document to the worker that reads fewest, see `FileReader`.

    Args:
        places: The workers, none started yet.
        jobs_each: Documents that a worker takes at once.
        limit_bytes: Largest size of a document.
    """

    def __init__(self, places: list[_Place], jobs_each: int, limit_bytes: int) -> None:
        self.jobs = len(places) * jobs_each
        self._places = places
        self._jobs_each = jobs_each
        self._limit_bytes = limit_bytes
        self._room = asyncio.Condition()
        self._returns: set[asyncio.Task[None]] = set()

    async def read(self, file: InputFile) -> Reading:
        """Read a document with any worker, and with another one if that is lost.

        Args:
            file: The document; its bytes go to the worker.

        Returns:
            The answer.

        Raises:
            FileError: It was not read, or each of `MAX_LOSSES` workers was lost with it.
            EngineError: A worker has a fault of its own.
        """
        try:
            data = await asyncio.to_thread(load, file, b"", self._limit_bytes)
        except UploadTooLargeError as error:
            raise error_of(error) from error
        sent = replace(file, path=None, data=data)
        for _ in range(MAX_LOSSES):
            place = await self._take()
            try:
                outcome = await place.actor.read.remote(sent)
            except RayTaskError as error:
                raise EngineError(f"a worker failed: {error.cause!r}") from error
            except RayError as error:
                # Also an object that was lost with its node, or a node that cannot be reached.
                self._lost(place, error)
                continue
            finally:
                await self._give_back(place)
            if isinstance(outcome, Refusal):
                if outcome.error is EngineError:
                    # Its engine is lost for good: Ray makes the worker again, perhaps on another machine.
                    ray.kill(place.actor, no_restart=False)
                    self._lost(place, outcome.raised())
                    continue
                raise outcome.raised()
            return outcome  # type: ignore[no-any-return, unused-ignore] # Ray's results have no types, where it is installed
        raise FileError("worker_lost", f"The worker was lost {MAX_LOSSES} times while it read this document.")

    def follow(self, place: _Place) -> None:
        """Wait in the background until a worker answers, then give it documents."""
        task = asyncio.ensure_future(self._await_return(place))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def close(self) -> None:
        """Wait for no worker any more."""
        for task in self._returns:
            task.cancel()
        await asyncio.gather(*self._returns, return_exceptions=True)

    async def _take(self) -> _Place:
        def free() -> list[_Place]:
            return [place for place in self._places if place.is_there and place.num_reading < self._jobs_each]

        async with self._room:
            await self._room.wait_for(free)
            place = min(free(), key=lambda each: each.num_reading)
            place.num_reading += 1
            return place

    async def _give_back(self, place: _Place) -> None:
        async with self._room:
            place.num_reading -= 1
            self._room.notify_all()

    def _lost(self, place: _Place, error: RayError | EngineError) -> None:
        if place.is_there:
            place.is_there = False
            _log.warning("a worker was lost (%s); others read its documents", type(error).__name__)
            self.follow(place)

    async def _await_return(self, place: _Place) -> None:
        while True:
            with contextlib.suppress(RayActorError):
                started = await place.actor.start.remote()
                if not isinstance(started, Refusal):
                    break
                _log.warning("a worker cannot start: %s", started.raised())
            await asyncio.sleep(RETURN_PAUSE_S)
        async with self._room:
            place.is_there = True
            self._room.notify_all()


def count_workers(settings: ServiceSettings) -> tuple[int, int]:
    """How many workers a cluster takes, and how many GPUs each of them has.

    Args:
        settings: Of each worker.

    Returns:
        A worker for each GPU, with it; where there are none or none is wanted, a worker for each machine.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if settings.engine is EngineKind.NATIVE and settings.device is not Device.CPU and gpus:
        return gpus, 1
    return max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())), 0


@contextlib.asynccontextmanager
async def ray_reader(
    settings: ServiceSettings, options: ReadOptions, workers: int | None, jobs: int | None
) -> AsyncIterator[RayReader]:
    """Start workers on the running cluster, the one of `RAY_ADDRESS` or of this machine, and stop them after the block.

    Args:
        settings: Which engine, and every limit.
        options: How to read.
        workers: How many; None for what the cluster has, see `count_workers`.
        jobs: Documents at once, of all workers; None for what fits.

    Yields:
        The reader, as soon as one worker has started; the others join.

    Raises:
        ServiceUnreachableError: There is no cluster.
        EngineError: The first worker that was ready to start could not.
    """
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise ServiceUnreachableError(
            f"no Ray cluster is running here, and RAY_ADDRESS names none that can be reached ({why}); start one: "
            "ray start --head --disable-usage-stats"
        ) from error
    num_fit, num_gpus = count_workers(settings)
    num_workers = workers or num_fit
    actor = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=-1, scheduling_strategy="SPREAD")(BulkWorker)
    jobs_each = None if jobs is None else -(-jobs // num_workers)
    places = [_Place(actor.remote(settings, options, jobs_each)) for _ in range(num_workers)]
    reader = None
    try:
        reader = RayReader(places, await _first_started(places), settings.max_upload_bytes)
        for place in places:
            reader.follow(place)
        yield reader
    finally:
        if reader is not None:
            await reader.close()
        await asyncio.gather(*map(_stop, places))
        ray.shutdown()


async def _first_started(places: list[_Place]) -> int:
    """Documents at once of the worker that starts first."""
    starts = [asyncio.ensure_future(_as_coroutine(place.actor.start.remote())) for place in places]
    try:
        while True:
            done, _ = await asyncio.wait(starts, timeout=FIRST_WORKER_NOTICE_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            _log.warning("no worker has started yet; the cluster may have no room: ray status tells")
        try:
            started = done.pop().result()
        except RayError as error:
            raise EngineError(f"a worker cannot start: {error}") from error
    finally:
        for task in starts:
            task.cancel()
    if isinstance(started, Refusal):
        raise started.raised()
    return int(started)


async def _as_coroutine(reference: Any) -> Any:
    return await reference


async def _stop(place: _Place) -> None:
    with contextlib.suppress(RayError, TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S if place.is_there else 0):
            await place.actor.stop.remote()
    ray.kill(place.actor)
