"""The catalog: which version each name serves, from what is on the volume, what was decided, and what has passed.

Owns the entries and the only place where a name moves from one version to another; `AdapterLoader` does the work that
takes time. Knows nothing of requests. Runs on the event loop.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from service.adapters.cache import LoraCache
from service.adapters.loader import AdapterLoader
from service.adapters.metrics import AdapterObserver
from service.adapters.policy import candidates
from service.adapters.rollback import Outcome, RollbackRule
from service.adapters.storage import Decisions, Storage
from service.adapters.versions import AdapterVersion, Refusal, VersionState
from service.errors import AdapterNotReadyError, AdapterStateError, ModelNotFoundError, ModelRefusedError
from shared.contract.identity import AdapterRef, parse_reference
from shared.contract.refusals import Reason, VolumeError
from shared.contract.volume import AdapterListing

MAX_FORMER = 8
"""Formerly served versions that are remembered per name."""
MAX_KEPT_RECORDS = 32
"""Version records kept per name; more only while they are in use."""
MAX_SHOWN_NAMES = 50
"""Names listed in an error."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CatalogEntry:
    """All versions under one name."""

    listing: AdapterListing
    """As last seen; kept while the volume is unavailable."""
    versions: dict[int, AdapterVersion] = field(default_factory=dict)
    """Those that this service has used or examined."""
    active: int | None = None
    """The version that the name serves."""
    chosen: int | None = None
    """The last one that it served because the pointer or a pin named it."""
    former: list[int] = field(default_factory=list)
    """Versions that it served here before, newest first."""
    is_settled: bool = False
    """Whether updating with the same listing would change nothing."""

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.listing.name


class AdapterCatalog:
    """The entries by name.

    Invariant: the version that a name serves has passed and is not refused.

    Args:
        decisions: Pins and refusals; replaced here, saved by `storage`.
        storage: Saves decisions, copies and the audit log.
        cache: Loaded adapters.
        loader: Prepares versions.
        rule: Says how many page outcomes a version keeps.
        observer: Counts refusals.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        decisions: Decisions,
        storage: Storage,
        cache: LoraCache,
        loader: AdapterLoader,
        rule: RollbackRule,
        observer: AdapterObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.decisions = decisions
        self._has_unsaved = False
        self._storage = storage
        self._cache = cache
        self._loader = loader
        self._rule = rule
        self._observer = observer
        self._clock = clock
        self._entries: dict[str, CatalogEntry] = {}

    @property
    def entries(self) -> Mapping[str, CatalogEntry]:
        """By name."""
        return self._entries

    @property
    def known_names(self) -> list[str]:
        """Names that requests may use, to be listed in an error."""
        return sorted(name for name, entry in self._entries.items() if entry.active is not None)[:MAX_SHOWN_NAMES]

    def observe(self, listings: Mapping[str, AdapterListing]) -> None:
        """Update entries with what is on the volume; a name that is gone from it stays as it was."""
        for name, listing in listings.items():
            known = self._entries.get(name)
            _tell_unpublished(listing, known.listing.unpublished if known else ())
            entry = self._entries.setdefault(name, CatalogEntry(listing))
            entry.is_settled &= entry.listing == listing
            entry.listing = listing
            for number in listing.withdrawn:
                version = entry.versions.get(number)
                if version is not None and version.refusal is None:
                    self.refuse(entry, version, Refusal(Reason.WITHDRAWN), who="volume")
        for entry in self._entries.values():
            # A volume may hold thousands of names; the event loop must not spend long on them.
            if not entry.is_settled:
                self.update(entry)

    def update(self, entry: CatalogEntry) -> None:
        """Switch a name to the version that it should serve, or have that version prepared."""
        active = entry.versions.get(entry.active) if entry.active is not None else None
        if active is not None and active.refusal is not None:
            self._leave(entry, active)
        target = self.wanted(entry)
        # An unreadable pointer changes nothing.
        if target is not None and not (entry.listing.fault and entry.active is not None and not self._pin(entry)):
            self._approach(entry, target)
        is_tidy = self._tidy(entry, target)
        entry.is_settled = is_tidy and target is not None and entry.active == target.reference.version

    def wanted(self, entry: CatalogEntry) -> AdapterVersion | None:
        """The version that a name should serve."""
        return next(self._servable(entry, self._pin(entry)), None)

    def fallback(self, entry: CatalogEntry) -> AdapterVersion | None:
        """What a name would serve if its current version were refused."""
        others = (each for each in self._servable(entry, None) if each.reference.version != entry.active)
        return next(others, None)

    def _approach(self, entry: CatalogEntry, target: AdapterVersion) -> None:
        """Switch to a version, or have it prepared; a name that serves nothing takes the next best meanwhile."""
        if target.is_ready:
            self._switch(entry, target)
            return
        if self._clock() >= target.retry_at_s:
            self._loader.request(target)
        if entry.active is None:
            ready = next((each for each in self._servable(entry, self._pin(entry)) if each.is_ready), None)
            if ready is not None:
                self._switch(entry, ready)

    def _servable(self, entry: CatalogEntry, pin: int | None) -> Iterator[AdapterVersion]:
        """Versions that a name may serve, best first."""
        kept = {number for number, version in entry.versions.items() if version.copy is not None}
        for number in candidates(
            entry.listing, pin=pin, chosen=entry.chosen, active=entry.active, former=entry.former, kept=kept
        ):
            version = self.version(entry, number)
            if version.refusal is None:
                yield version

    def version(self, entry: CatalogEntry, number: int) -> AdapterVersion:
        """The record of a version, created if missing."""
        version = entry.versions.get(number)
        if version is None:
            reference = AdapterRef(entry.name, number)
            outcomes: deque[Outcome] = deque(maxlen=max(self._rule.pages, 1))
            version = AdapterVersion(reference, seen_at_s=self._clock(), outcomes=outcomes)
            decided = self.decisions.refusals.get(str(reference))
            if decided is not None:
                version.refusal = Refusal(decided["reason"], decided.get("why", ""))
            elif number in entry.listing.withdrawn:
                version.refusal = Refusal(Reason.WITHDRAWN)
            entry.versions[number] = version
        return version

    def find(self, model_id: str) -> tuple[CatalogEntry, AdapterVersion]:
        """The version that a request names.

        Args:
            model_id: `name` or `name@version`, as a client sent it.

        Returns:
            Entry and version; the version may have to be prepared first.

        Raises:
            ModelNotFoundError: It does not exist; the error lists the known names.
            ModelRefusedError: It was refused.
        """
        try:
            name, number = parse_reference(model_id)
        except VolumeError:
            raise self._unknown() from None
        entry = self._entries.get(name)
        if entry is None:
            raise self._unknown()
        if number is None:
            return entry, self._by_name(entry)
        known = {*entry.versions, *entry.listing.versions, *entry.listing.withdrawn}
        if number not in known:
            raise self._unknown(Reason.MANIFEST_MISSING if number in entry.listing.incomplete else None)
        version = self.version(entry, number)
        if version.refusal is not None:
            raise refused(version)
        return entry, version

    def refuse(
        self,
        entry: CatalogEntry,
        version: AdapterVersion,
        refusal: Refusal,
        *,
        who: str,
        keeps: bool = False,
        must_save: bool = True,
    ) -> None:
        """Take a version out of service; documents that are being read with it are finished.

        Args:
            entry: The entry of its name.
            version: The version.
            refusal: Reason and detail.
            who: Who decided, for the audit log.
            keeps: Whether the decision is saved and outlives the process.
            must_save: As `decide` has it.

        Raises:
            AdapterStateError: The decision could not be saved, so nothing has changed.
        """
        if keeps:
            wanted = self.decisions.copy()
            wanted.refusals[version.model_id] = {"reason": refusal.reason, "why": refusal.detail, "who": who}
            if self._pin(entry) == version.reference.version:
                del wanted.pins[entry.name]
            self.decide(wanted, must_save=must_save)
        version.refusal = refusal
        self._observer.refused(refusal.reason)
        self._storage.record(
            "refused", who=who, why=refusal.detail, reason=refusal.reason,
            name=entry.name, version=version.reference.version,
        )  # fmt: skip
        self.update(entry)

    def decide(self, wanted: Decisions, *, must_save: bool = True) -> None:
        """Save decisions, and let them hold.

        Args:
            wanted: All of them.
            must_save: False if they hold although they cannot be saved now; `keep_saving` then tries again.

        Raises:
            AdapterStateError: They could not be saved, so those before still hold.
        """
        is_saved = self._storage.save(wanted)
        if not is_saved and must_save:
            raise AdapterStateError
        self.decisions = wanted
        self._has_unsaved = not is_saved

    def keep_saving(self) -> None:
        """Save decisions that could not be saved before."""
        if self._has_unsaved and self._storage.save(self.decisions):
            self._has_unsaved = False
            self._storage.record("saved", who="service", why="there is room again")

    def state(self, entry: CatalogEntry, version: AdapterVersion) -> VersionState:
        """The state of a version."""
        if version.refusal is not None:
            return VersionState.REFUSED
        if self._cache.is_resident(version.model_id):
            if self._cache.is_draining(version.model_id):
                return VersionState.DRAINING
            is_active = entry.active == version.reference.version
            return VersionState.ACTIVE if is_active else VersionState.LOADED
        if version.has_passed:
            return VersionState.UNLOADED
        return VersionState.SEEN if version.copy is None else VersionState.VERIFIED

    def _pin(self, entry: CatalogEntry) -> int | None:
        return self.decisions.pins.get(entry.name)

    def _by_name(self, entry: CatalogEntry) -> AdapterVersion:
        if entry.active is not None:
            return entry.versions[entry.active]
        wanted = self.wanted(entry)
        if wanted is not None:
            return wanted
        kept = set(entry.versions)
        named = candidates(entry.listing, pin=self._pin(entry), former=entry.former, kept=kept)
        if not named:
            raise self._unknown(Reason.MANIFEST_MISSING if entry.listing.unpublished else None)
        version = self.version(entry, named[0])
        if version.refusal is None:
            raise AdapterNotReadyError(f"{version.model_id} is neither on the volume nor kept here")
        raise refused(version)

    def _switch(self, entry: CatalogEntry, version: AdapterVersion) -> None:
        number = version.reference.version
        if entry.active == number:
            return
        before = entry.versions.get(entry.active) if entry.active is not None else None
        if before is not None:
            self._leave(entry, before)
        entry.active = number
        if number in (self._pin(entry), entry.listing.current):
            entry.chosen = number
        entry.former = [each for each in entry.former if each != number]
        self._storage.record(
            "activated", who="service", why="pinned" if self._pin(entry) == number else "in use on the volume",
            name=entry.name, version=number, before=before.reference.version if before else None,
        )  # fmt: skip

    def _leave(self, entry: CatalogEntry, version: AdapterVersion) -> None:
        """Stop serving a version under its name; documents that are being read with it are finished."""
        number = version.reference.version
        entry.active = None
        entry.former = [number, *(each for each in entry.former if each != number)][:MAX_FORMER]
        self._cache.retire(version.model_id)

    def _tidy(self, entry: CatalogEntry, wanted: AdapterVersion | None) -> bool:
        """Drop copies and records that are no longer needed; False if some remain because they are still in use."""
        fallback = next((each for each in entry.former if entry.versions[each].refusal is None), None)
        needed = {entry.active, fallback, wanted.reference.version if wanted else None}
        idle = [
            number for number in sorted(entry.versions) if number not in needed and not self._is_busy(entry, number)
        ]
        for number in idle:
            version = entry.versions[number]
            if version.copy is not None:
                self._storage.drop_copy(version.copy.folder)
                version.copy = None
        for number in idle[: max(len(entry.versions) - MAX_KEPT_RECORDS, 0)]:
            if number not in entry.former:
                del entry.versions[number]
        return not any(version.copy for number, version in entry.versions.items() if number not in needed)

    def _is_busy(self, entry: CatalogEntry, number: int) -> bool:
        version = entry.versions[number]
        return self._cache.is_wanted(version.model_id) or self._loader.is_busy_with(version)

    def _unknown(self, reason: Reason | None = None) -> ModelNotFoundError:
        why = {} if reason is None else {"reason": reason.value}
        return ModelNotFoundError(public={"known": self.known_names, **why})


def _tell_unpublished(listing: AdapterListing, told: Collection[str]) -> None:
    """Say once of each folder without a manifest that it is not served."""
    for folder in listing.unpublished:
        if folder not in told:
            place = listing.name if folder == "." else f"{listing.name}/{folder}"
            _log.warning("%s is not served: it has no manifest.json; publish it, do not copy", place)


def refused(version: AdapterVersion) -> ModelRefusedError:
    """The error of a request for a version that is refused."""
    assert version.refusal is not None
    return ModelRefusedError(
        version.refusal.detail, public={"model_id": version.model_id, "reason": version.refusal.reason}
    )
