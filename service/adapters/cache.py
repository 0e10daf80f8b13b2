"""The LoRA cache: loads adapters into the engine's slots on demand and evicts the least recently used one.

Owns holds, the queue of adapters that are waited for, and the only task that loads and unloads. Which adapters are
loaded is recorded by the engine's handle alone. Knows names and folders, not versions. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path

from service.adapters.policy import SlotUse, choose_victim
from service.engine.lora.registry import AdapterError
from service.engine.protocol import EngineHandle, EngineState
from service.errors import AdapterNotReadyError, EngineLostError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Demand:
    """An adapter that is not loaded, and the requests that wait for it."""

    folder: Path
    waiters: list[asyncio.Future[Hold]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        return any(not waiter.done() for waiter in self.waiters)


class Hold:
    """Keeps an adapter in its slot until it is released."""

    def __init__(self, cache: LoraCache, use: SlotUse) -> None:
        self._cache = cache
        self._use = use
        self._is_released = False

    def release(self) -> None:
        """Give up the hold; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._use.holds -= 1
            self._cache._changed.set()


class LoraCache:
    """Adapters in the engine's slots.

    Invariant: a held adapter keeps its slot; adapters are loaded in the order in which they were first requested.

    Args:
        engine: Has the slots.
        wait_s: Longest that a request waits for its adapter.
    """

    def __init__(self, engine: EngineHandle, *, wait_s: float) -> None:
        self._engine = engine
        self._wait_s = wait_s
        self._uses: dict[str, SlotUse] = {}
        # Of adapters in `engine.adapters`; kept while a lost engine restarts, until it is known which ones came back.
        self._demands: dict[str, _Demand] = {}
        self._loading: str | None = None
        self._clock = itertools.count(1)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.num_evicted = 0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for an adapter."""
        return len(self.waiting)

    @property
    def waiting(self) -> list[str]:
        """What requests wait for, once a request."""
        demands = self._demands.items()
        return [name for name, demand in demands for waiter in demand.waiters if not waiter.done()]

    def num_holds(self, model_id: str) -> int:
        """Holds on an adapter; 0 if it is not loaded."""
        use = self._find(model_id)
        return use.holds if use else 0

    def is_resident(self, model_id: str) -> bool:
        """Whether an adapter is loaded."""
        return model_id in self._engine.adapters

    def is_wanted(self, model_id: str) -> bool:
        """Whether an adapter is loaded, being loaded or waited for."""
        return model_id in self._uses or model_id in self._demands or model_id == self._loading

    def is_draining(self, model_id: str) -> bool:
        """Whether an adapter will be unloaded after its last hold."""
        use = self._find(model_id)
        return use is not None and (use.is_leaving or use.is_retired)

    def start(self) -> None:
        """Start the task that loads and unloads."""
        self._task = asyncio.create_task(self._run(), name="lora-cache")

    async def stop(self) -> None:
        """Stop the task; requests that wait fail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for demand in self._demands.values():
            _fail(demand, EngineLostError("the service is stopping"))

    async def hold(self, model_id: str, folder: Path) -> Hold:
        """Hold an adapter, loading it first if need be.

        Args:
            model_id: `name@version`.
            folder: Its files, which stay in place while it is loaded.

        Returns:
            The hold; the caller releases it.

        Raises:
            AdapterNotReadyError: It took too long. An `AdapterError` says that the engine refuses it.
            EngineLostError: The engine is not running.
        """
        use = self._find(model_id)
        if use is not None and not use.is_leaving:
            return self._take(use)
        if self._engine.state is not EngineState.READY:
            raise EngineLostError(f"the engine is {self._engine.state}")
        waiter: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._demands.setdefault(model_id, _Demand(folder)).waiters.append(waiter)
        self._changed.set()
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiter
        except BaseException as error:
            # The hold may have been given in the moment in which the wait ended.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            self._changed.set()
            if isinstance(error, TimeoutError):
                raise AdapterNotReadyError(f"{model_id} waited {self._wait_s} s for a slot") from None
            raise

    def retire(self, model_id: str) -> None:
        """Unload an adapter after its last hold."""
        use = self._find(model_id)
        if use is not None:
            use.is_retired = True
            self._changed.set()

    def _find(self, model_id: str) -> SlotUse | None:
        """The use of a loaded adapter."""
        return self._uses.get(model_id) if model_id in self._engine.adapters else None

    def _take(self, use: SlotUse) -> Hold:
        use.holds += 1
        use.used_at = next(self._clock)
        use.is_retired = False
        return Hold(self, use)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            if not await self._advance():
                await self._changed.wait()

    async def _advance(self) -> bool:
        """Do one thing that can be done; False if there is nothing to do until something changes."""
        if self._engine.state is EngineState.READY:
            # Without those that did not come back with an engine that was lost.
            self._uses = {name: use for name, use in self._uses.items() if name in self._engine.adapters}
        for retired, use in self._uses.items():
            if use.is_retired and not use.holds and retired not in self._demands:
                await self._unload(retired)
                return True
        self._demands = {name: demand for name, demand in self._demands.items() if demand.is_wanted}
        model_id = next(iter(self._demands), None)
        if model_id is None:
            for use in self._uses.values():
                use.is_leaving = False
            return False
        present = self._find(model_id)
        if present is not None:
            # It was to make room for a request that no longer waits.
            present.is_leaving = False
            self._give(self._demands.pop(model_id), present)
            return True
        if len(self._uses) < self._engine.info.adapter_slots:
            await self._load(model_id, self._demands.pop(model_id))
            return True
        return await self._make_room()

    async def _make_room(self) -> bool:
        leaving = next((name for name, use in self._uses.items() if use.is_leaving), None)
        victim = leaving or choose_victim(self._uses)
        if victim is None:
            _fail(self._demands.pop(next(iter(self._demands))), AdapterError("adapters_off", "the engine has no slots"))
            return True
        self._uses[victim].is_leaving = True
        if self._uses[victim].holds:
            return False
        self.num_evicted += 1
        await self._unload(victim)
        return True

    async def _load(self, model_id: str, demand: _Demand) -> None:
        self._loading = model_id
        try:
            await self._engine.load_adapter(model_id, demand.folder)
        except (AdapterError, EngineLostError) as error:
            _fail(demand, error)
            return
        except BaseException:
            _fail(demand, EngineLostError("the service is stopping"))
            raise
        finally:
            self._loading = None
        self._uses[model_id] = SlotUse()
        self._give(demand, self._uses[model_id])

    async def _unload(self, model_id: str) -> None:
        del self._uses[model_id]
        try:
            await self._engine.unload_adapter(model_id)
        except EngineLostError:
            _log.debug("%s left with the engine", model_id)
        except AdapterError as error:
            _log.error("%s could not be unloaded: %s", model_id, error.reason)

    def _give(self, demand: _Demand, use: SlotUse) -> None:
        for waiter in demand.waiters:
            if not waiter.done():
                waiter.set_result(self._take(use))


def _fail(demand: _Demand, error: Exception) -> None:
    for waiter in demand.waiters:
        if not waiter.done():
            waiter.set_exception(error)
