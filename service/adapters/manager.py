"""Adapters as the rest of the service sees them: names, leases while a document is read, and operators' commands.

Builds and connects the parts of this package. Runs on the event loop.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from service.adapters.cache import Hold, LoraCache
from service.adapters.catalog import AdapterCatalog, CatalogEntry, refused
from service.adapters.loader import AdapterLoader
from service.adapters.metrics import AdapterObserver
from service.adapters.rollback import Outcome, RollbackRule, judge
from service.adapters.storage import Storage
from service.adapters.versions import LIFTABLE, AdapterVersion, Refusal, ServiceReason
from service.adapters.watcher import Watcher
from service.engine.lora.registry import AdapterError
from service.engine.protocol import EngineHandle
from service.errors import (
    AdapterConflictError,
    AdapterNotReadyError,
    EngineError,
    EngineLostError,
    ModelNotFoundError,
)
from shared.contract.answer import FinishReason
from shared.contract.lora_content import ContentLimits
from shared.contract.verification import ServingPolicy
from shared.contract.volume import AdapterVolume

AUTOMATIC = "automatic rollback"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """Settings of adapter serving."""

    volume: Path
    state: Path | None = None
    poll_s: float = 1.0
    wait_s: float = 30.0
    """Maximum time that a request waits for its adapter."""
    rule: RollbackRule = field(default_factory=RollbackRule)


class AdapterLease:
    """Keeps one version of an adapter loaded while a document is read."""

    def __init__(self, manager: AdapterManager, entry: CatalogEntry, version: AdapterVersion) -> None:
        self._manager = manager
        self._entry = entry
        self._version = version

    @property
    def model_id(self) -> str:
        """`name@version`."""
        return self._version.model_id

    def finished(self, reasons: Iterable[FinishReason]) -> None:
        """Record how the document's pages ended."""
        outcomes = (Outcome.LOOP if reason is FinishReason.REPETITION else Outcome.FINE for reason in reasons)
        self._manager._note(self._entry, self._version, outcomes)

    def failed(self) -> None:
        """Record that the engine failed on a page."""
        self._manager._note(self._entry, self._version, [Outcome.FAILURE])


class AdapterManager:
    """The adapters of one service."""

    def __init__(
        self,
        engine: EngineHandle,
        options: AdapterOptions,
        observer: AdapterObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._options = options
        self._observer = observer
        self._clock = clock
        self._storage = Storage(options.state)
        self._volume = AdapterVolume(options.volume)
        self._cache = LoraCache(engine, wait_s=options.wait_s)
        self._stack = contextlib.AsyncExitStack()
        self._catalog: AdapterCatalog | None = None
        self._loader: AdapterLoader | None = None
        self._watcher: Watcher | None = None

    async def start(self, base_revisions: frozenset[str] | None) -> None:
        """Scan the volume and start watching it; call it once the engine is ready.

        Args:
            base_revisions: Valid names of the base model's revision; None accepts any. A `ConfigurationError` says
                that the state folder cannot be used.
        """
        self._stack.callback(self._storage.close)
        decisions = self._storage.open()
        info = self._engine.info
        self._loader = AdapterLoader(
            volume=self._volume,
            storage=self._storage,
            policy=ServingPolicy(
                base_model=info.model_id,
                base_revisions=base_revisions,
                limits=ContentLimits(max_rank=info.adapter_max_rank),
            ),
            cache=self._cache,
            engine=self._engine,
            observer=self._observer,
            on_settled=self._settled,
            clock=self._clock,
        )
        self._catalog = AdapterCatalog(
            decisions=decisions,
            storage=self._storage,
            cache=self._cache,
            loader=self._loader,
            rule=self._options.rule,
            observer=self._observer,
            clock=self._clock,
        )
        self._watcher = Watcher(
            volume=self._volume,
            period_s=self._options.poll_s,
            on_found=self._catalog.observe,
            on_looked=self._show,
            observer=self._observer,
        )
        self._cache.start()
        self._stack.push_async_callback(self._cache.stop)
        self._loader.start()
        self._stack.push_async_callback(self._loader.stop)
        self._stack.push_async_callback(self._watcher.stop)
        await self._watcher.start()

    async def stop(self) -> None:
        """Stop the parts in reverse order."""
        await self._stack.aclose()

    @property
    def catalog(self) -> AdapterCatalog:
        """Names and versions; read-only."""
        assert self._catalog is not None, "adapters were used before the service has started"
        return self._catalog

    @property
    def volume_fault(self) -> str | None:
        """What was wrong with the volume at the last scan."""
        return self._watcher.fault if self._watcher else None

    @property
    def misnamed(self) -> tuple[str, ...]:
        """Folders of the volume whose names are none of adapters, at the last scan."""
        return self._watcher.misnamed if self._watcher else ()

    @property
    def cache(self) -> LoraCache:
        """Loaded adapters; read-only."""
        return self._cache

    def resident(self) -> list[str]:
        """Names that are answered without loading an adapter first: `name@version`, and `name` where it serves one."""
        names = set()
        for entry in self.catalog.entries.values():
            for number, version in entry.versions.items():
                if self._cache.is_resident(version.model_id):
                    names |= {version.model_id, entry.name} if number == entry.active else {version.model_id}
        return sorted(names)

    def check(self, model_id: str) -> AdapterVersion:
        """The version that a request names, prepared or not; raises what `AdapterCatalog.find` raises."""
        return self.catalog.find(model_id)[1]

    @contextlib.asynccontextmanager
    async def lease(self, model_id: str) -> AsyncIterator[AdapterLease]:
        """Load an adapter, a bare name at the version that it serves now, and keep it loaded in the block.

        Args:
            model_id: `name` or `name@version`.

        Yields:
            The lease.

        Raises:
            EngineError: From within the block; recorded as a failure of the adapter.
        """
        entry, version, hold = await self._hold(model_id)
        lease = AdapterLease(self, entry, version)
        try:
            yield lease
        except EngineError:
            lease.failed()
            raise
        finally:
            hold.release()

    async def pin(self, name: str, version: int | None, *, who: str, why: str) -> None:
        """Make a name serve one version, whatever the volume's pointer says.

        Args:
            name: The adapter.
            version: None to follow the volume again.
            who: For the audit log.
            why: For the audit log.

        Raises:
            ModelRefusedError: The version failed its checks; nothing has changed.
            AdapterStateError: The decision could not be saved; nothing has changed.
            AdapterConflictError: It is neither on the volume nor kept here; nothing has changed.
        """
        if version is None:
            entry = self._entry(name)
            decisions = self.catalog.decisions.copy()
            decisions.pins.pop(name, None)
            self.catalog.decide(decisions)
        else:
            entry, wanted = self._find(name, version)
            is_final = wanted.refusal is not None and wanted.refusal.reason not in LIFTABLE
            if not is_final and wanted.copy is None and version not in entry.listing.versions:
                reason = f"{wanted.model_id} is neither on the volume nor kept here; publish it again"
                raise AdapterConflictError(public={"reason": reason})
            await self._pin(name, wanted)
        what = "unpinned" if version is None else "pinned"
        self._storage.record(what, who=who, why=why, name=name, version=version)
        self.catalog.update(entry)

    async def _pin(self, name: str, wanted: AdapterVersion) -> None:
        lifted = wanted.refusal
        if lifted is not None:
            if lifted.reason not in LIFTABLE:
                raise refused(wanted)
            wanted.refusal, wanted.num_losses = None, 0
            wanted.outcomes.clear()
        try:
            await self._prepare(wanted)
            if wanted.refusal is None:
                decisions = self.catalog.decisions.copy()
                decisions.refusals.pop(wanted.model_id, None)
                decisions.pins[name] = wanted.reference.version
                self.catalog.decide(decisions)
        except BaseException:
            wanted.refusal = wanted.refusal or lifted
            raise
        if wanted.refusal is not None:
            raise refused(wanted)

    async def refuse(self, name: str, version: int, *, who: str, why: str) -> None:
        """Take a version out of service; if its name serves it, the last good version replaces it."""
        entry, wanted = self._find(name, version)
        self.catalog.refuse(entry, wanted, Refusal(ServiceReason.OPERATOR, why), who=who, keeps=True)

    async def roll_back(self, name: str, *, who: str, why: str) -> None:
        """Take the served version out of service and return to the last good one.

        Args:
            name: The adapter.
            who: For the audit log.
            why: For the audit log.

        Raises:
            AdapterConflictError: The name serves nothing, or has no earlier version to return to.
        """
        entry = self._entry(name)
        if entry.active is None:
            raise AdapterConflictError(public={"reason": "nothing is in use under this name"})
        version = entry.versions[entry.active]
        if self.catalog.fallback(entry) is None:
            raise AdapterConflictError(public={"reason": f"there is nothing to go back to from {version.model_id}"})
        self.catalog.refuse(entry, version, Refusal(ServiceReason.OPERATOR, why), who=who, keeps=True)
        self._observer.rolled_back("operator")
        wanted = self.catalog.wanted(entry)
        if wanted is not None:
            await self._prepare(wanted)
        self.catalog.update(entry)

    async def _hold(self, model_id: str) -> tuple[CatalogEntry, AdapterVersion, Hold]:
        """Resolve a name and load its version; the name is resolved again if the version was refused meanwhile."""
        ends_s = self._clock() + self._options.wait_s
        while True:
            entry, version = self.catalog.find(model_id)
            if version.has_passed and version.copy is not None:
                try:
                    return entry, version, await self._cache.hold(version.model_id, version.copy.folder)
                except AdapterError as error:
                    _log.error("%s could not be loaded: %s", version.model_id, error)
                    raise AdapterNotReadyError(str(error)) from error
            assert self._loader is not None
            left_s = ends_s - self._clock()
            if left_s <= 0:
                raise AdapterNotReadyError(f"{version.model_id} was not prepared in time")
            await self._loader.wait(version, left_s)

    async def _prepare(self, version: AdapterVersion) -> None:
        """Prepare a version, if that is possible now."""
        assert self._loader is not None
        if not version.is_ready:
            with contextlib.suppress(AdapterNotReadyError, EngineLostError):
                await self._loader.wait(version, self._options.wait_s)

    def _entry(self, name: str) -> CatalogEntry:
        entry = self.catalog.entries.get(name)
        if entry is None:
            raise ModelNotFoundError(public={"known": self.catalog.known_names})
        return entry

    def _find(self, name: str, version: int) -> tuple[CatalogEntry, AdapterVersion]:
        """A version that an operator names, refused or not."""
        entry = self._entry(name)
        if version not in {*entry.versions, *entry.listing.versions, *entry.listing.withdrawn}:
            raise ModelNotFoundError(public={"known": [f"{name}@{each}" for each in entry.listing.versions[-50:]]})
        return entry, self.catalog.version(entry, version)

    def _settled(self, version: AdapterVersion) -> None:
        self.catalog.update(self.catalog.entries[version.reference.name])

    def _note(self, entry: CatalogEntry, version: AdapterVersion, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            version.outcomes.append(outcome)
            version.num_pages += 1
            self._observer.page(entry.name, outcome)
        if entry.active != version.reference.version or entry.name in self.catalog.decisions.pins:
            return
        former = next((entry.versions[each] for each in entry.former if entry.versions[each].refusal is None), None)
        verdict = judge(version.outcomes, former.outcomes, self._options.rule) if former is not None else None
        if verdict is not None:
            _log.error("%s is rolled back: %s", version.model_id, verdict)
            refusal = Refusal(ServiceReason.ROLLED_BACK, str(verdict))
            self.catalog.refuse(entry, version, refusal, who=AUTOMATIC, keeps=True, must_save=False)
            self._observer.rolled_back("automatic")

    def _show(self) -> None:
        """Update the gauges, and save what could not be saved before."""
        self.catalog.keep_saving()
        for name, entry in self.catalog.entries.items():
            active = entry.versions.get(entry.active) if entry.active is not None else None
            created = active.copy.manifest.created if active and active.copy else None
            self._observer.served(name, entry.active, created)
        self._observer.slots(
            total=self._engine.info.adapter_slots,
            loaded=self._engine.adapters,
            waiting=self._cache.waiting,
            evicted=self._cache.num_evicted,
        )
