"""Who sits in the engine's slots: adapters come when they are asked for, and the least recently used leave for them.

Owns holds, the order of those who wait, and the only task that loads and unloads. Knows names and folders, nothing of
versions. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path

from service.adapters.policy import Occupant, choose_victim
from service.engine.lora.registry import AdapterError
from service.engine.protocol import AdapterLoad, EngineHandle, EngineState
from service.errors import AdapterNotReadyError, EngineLostError

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Resident:
    """An adapter in a slot."""

    load: AdapterLoad
    holds: int = 0
    used_at: int = 0
    is_leaving: bool = False
    """Somebody else gets its slot as soon as nobody holds it; until then nobody new may."""
    is_retired: bool = False
    """It leaves when nobody holds it, unless somebody new comes first."""


@dataclass(slots=True)
class _Demand:
    """Who waits for an adapter that is not resident."""

    folder: Path
    waiters: list[asyncio.Future[Hold]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        return any(not waiter.done() for waiter in self.waiters)


class Hold:
    """Keeps an adapter in its slot until it is released, once."""

    def __init__(self, residency: Residency, resident: _Resident) -> None:
        self._residency = residency
        self._resident = resident
        self._is_released = False

    @property
    def load(self) -> AdapterLoad:
        """What bringing the adapter there cost."""
        return self._resident.load

    def release(self) -> None:
        """Let it go; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._resident.holds -= 1
            self._residency._changed.set()


class Residency:
    """The slots.

    Invariant: a held adapter stays where it is; those who wait are served in the order in which their adapters were
    asked for first.

    Args:
        engine: Has the slots.
        wait_s: Longest that somebody waits for an adapter to come.
    """

    def __init__(self, engine: EngineHandle, *, wait_s: float) -> None:
        self._engine = engine
        self._wait_s = wait_s
        self._residents: dict[str, _Resident] = {}
        self._demands: dict[str, _Demand] = {}
        self._coming: str | None = None
        self._uses = itertools.count(1)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.num_evicted = 0

    @property
    def names(self) -> list[str]:
        """Adapters in slots."""
        return list(self._residents)

    @property
    def num_waiting(self) -> int:
        """Who waits for an adapter."""
        return sum(not waiter.done() for demand in self._demands.values() for waiter in demand.waiters)

    def num_holds(self, model_id: str) -> int:
        """How many hold an adapter."""
        resident = self._residents.get(model_id)
        return resident.holds if resident else 0

    def is_resident(self, model_id: str) -> bool:
        """Whether an adapter sits in a slot."""
        return model_id in self._residents

    def is_wanted(self, model_id: str) -> bool:
        """Whether an adapter sits in a slot, or somebody waits for it."""
        return model_id in self._residents or model_id in self._demands or model_id == self._coming

    def is_draining(self, model_id: str) -> bool:
        """Whether an adapter is about to leave."""
        resident = self._residents.get(model_id)
        return resident is not None and (resident.is_leaving or resident.is_retired)

    def start(self) -> None:
        """Begin to serve demands."""
        self._task = asyncio.create_task(self._run(), name="adapter-residency")

    async def stop(self) -> None:
        """End; whoever waits is turned away."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for demand in self._demands.values():
            _settle(demand, EngineLostError("the service is stopping"))

    async def hold(self, model_id: str, folder: Path) -> Hold:
        """Have an adapter in a slot, at once where it is there.

        Args:
            model_id: `name@version`.
            folder: Its files; they stay where they are for as long as it is resident.

        Returns:
            The hold, to be released.

        Raises:
            AdapterNotReadyError: It took too long. An `AdapterError` says that the engine refuses it.
            EngineLostError: The engine is away.
        """
        resident = self._residents.get(model_id)
        if resident is not None and not resident.is_leaving and model_id in self._engine.adapters:
            return self._take(resident)
        if self._engine.state is not EngineState.READY:
            raise EngineLostError(f"the engine is {self._engine.state}")
        waiter: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._demands.setdefault(model_id, _Demand(folder)).waiters.append(waiter)
        self._changed.set()
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiter
        except BaseException as error:
            # Given in the same moment in which the wait ended.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            self._changed.set()
            if isinstance(error, TimeoutError):
                raise AdapterNotReadyError(f"{model_id} waited {self._wait_s} s for a slot") from None
            raise

    def retire(self, model_id: str) -> None:
        """Let an adapter leave when nobody holds it any more."""
        resident = self._residents.get(model_id)
        if resident is not None:
            resident.is_retired = True
            self._changed.set()

    def _take(self, resident: _Resident) -> Hold:
        resident.holds += 1
        resident.used_at = next(self._uses)
        resident.is_retired = False
        return Hold(self, resident)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            if not await self._advance():
                await self._changed.wait()

    async def _advance(self) -> bool:
        """Do one thing that can be done; False where there is none until something changes."""
        self._forget_lost()
        for retired, resident in self._residents.items():
            if resident.is_retired and not resident.holds and retired not in self._demands:
                await self._unload(retired)
                return True
        self._demands = {name: demand for name, demand in self._demands.items() if demand.is_wanted}
        model_id = next(iter(self._demands), None)
        if model_id is None:
            for resident in self._residents.values():
                resident.is_leaving = False
            return False
        present = self._residents.get(model_id)
        if present is not None:
            # It was to leave for somebody who no longer waits.
            present.is_leaving = False
            self._give(self._demands.pop(model_id), present)
            return True
        if len(self._residents) < self._engine.info.adapter_slots:
            await self._load(model_id, self._demands.pop(model_id))
            return True
        return await self._make_room()

    async def _make_room(self) -> bool:
        leaving = next((name for name, resident in self._residents.items() if resident.is_leaving), None)
        victim = leaving or choose_victim(
            {name: Occupant(each.holds, each.used_at) for name, each in self._residents.items()}
        )
        if victim is None:
            _settle(self._demands.pop(next(iter(self._demands))), AdapterError("adapters_off", "there is no slot"))
            return True
        self._residents[victim].is_leaving = True
        if self._residents[victim].holds:
            return False
        self.num_evicted += 1
        await self._unload(victim)
        return True

    async def _load(self, model_id: str, demand: _Demand) -> None:
        self._coming = model_id
        try:
            load = await self._engine.load_adapter(model_id, demand.folder)
        except (AdapterError, EngineLostError) as error:
            _settle(demand, error)
            return
        except BaseException:
            _settle(demand, EngineLostError("the service is stopping"))
            raise
        finally:
            self._coming = None
        self._residents[model_id] = _Resident(load)
        self._give(demand, self._residents[model_id])

    async def _unload(self, model_id: str) -> None:
        del self._residents[model_id]
        try:
            await self._engine.unload_adapter(model_id)
        except EngineLostError:
            _log.debug("%s left with the engine", model_id)
        except AdapterError as error:
            _log.error("%s could not be unloaded: %s", model_id, error.reason)

    def _forget_lost(self) -> None:
        """Adapters that did not come back with an engine that was lost."""
        if self._engine.state is EngineState.READY:
            for model_id in [name for name in self._residents if name not in self._engine.adapters]:
                del self._residents[model_id]

    def _give(self, demand: _Demand, resident: _Resident) -> None:
        for waiter in demand.waiters:
            if not waiter.done():
                waiter.set_result(self._take(resident))


def _settle(demand: _Demand, error: Exception) -> None:
    for waiter in demand.waiters:
        if not waiter.done():
            waiter.set_exception(error)
