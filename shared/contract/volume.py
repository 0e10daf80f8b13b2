"""The layout of the shared volume: where adapters are, and which version is in use.

    <root>/<name>/<version>/            adapter_model.safetensors, adapter_config.json, manifest.json
    <root>/<name>/current               the version in use; see `pointer`
    <root>/<name>/<version>.withdrawn   JSON: why that version must no longer be served
    <root>/<name>/.*                    unfinished work

Owns names, discovery, the pointer and the marks of withdrawal. `publication` writes versions, `verification` checks
their content. Reading works on a read-only mount. Nothing is locked: every change is a single rename.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.contract.durable import closing_descriptor, entry_exists, folder_descriptor, read_small, replace_file
from shared.contract.identity import AdapterRef, check_name, parse_reference, parse_version
from shared.contract.pointer import MAX_POINTER_BYTES, Pointer, parse_pointer, pointer_bytes
from shared.contract.refusals import AdapterRefusedError, Fault, Reason, VolumeError, reporting, volume_error

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
CURRENT_FILE = "current"
WITHDRAWN_SUFFIX = ".withdrawn"
POINTER_PREFIX = ".current-"
MARK_PREFIX = ".mark-"

MAX_LISTED_VERSIONS = 256
"""Only so many of an adapter's newest versions are examined, and those that the pointer names. Limits a poll's cost."""
MAX_NAMES = 4096
"""Adapters that are listed at most: those with a pointer first, then in the order of their names."""
MAX_FOLDERS = 16 * MAX_NAMES
"""Folders among which adapters with a pointer are looked for. Limits a poll's cost."""

MAX_MISNAMED = 50
"""Folders whose names are none of adapters, listed so that operators see why they are not served."""
SYSTEM_FOLDERS = frozenset({"lost+found"})
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class AdapterListing:
    """The versions of one adapter and its pointer."""

    name: str
    versions: tuple[int, ...]
    """Complete versions that were not withdrawn, ascending."""
    withdrawn: tuple[int, ...]
    incomplete: tuple[int, ...]
    """Folders without a manifest: not published as the contract demands, so never served."""
    current: int | None
    """The version that the pointer names, whether or not it can be served."""
    former: tuple[int, ...]
    """The versions that it named before, newest first."""
    fault: Fault | None = None
    """Set if the pointer cannot be parsed."""
    newest: int = 0
    """Highest number ever used; the next version gets a higher one."""
    has_loose_files: bool = False
    """Whether files of an adapter lie in the name's own folder instead of a version's."""

    @property
    def unpublished(self) -> tuple[str, ...]:
        """Folders below the name's that look like adapters but were not published: versions, or `.` for its own."""
        return (*map(str, self.incomplete), *(["."] if self.has_loose_files else []))


@dataclass(frozen=True, slots=True)
class VolumeContent:
    """What a volume holds, as far as it could be read."""

    listings: dict[str, AdapterListing]
    """By name."""
    faults: dict[str, Fault]
    """Why other adapters could not be listed, by name."""
    num_left_out: int = 0
    """Folders beyond `MAX_NAMES`, which were not looked at."""
    misnamed: tuple[str, ...] = ()
    """Folders whose names adapters cannot have, sorted, `MAX_MISNAMED` at most; hidden ones are not meant."""


class AdapterVolume:
    """Adapters under one folder. Its only state is the path, so any number of processes may use one volume."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Names of the adapters on the volume.

        Returns:
            Names of folders that are valid names of adapters, sorted, `MAX_NAMES` at most; other entries are ignored.

        Raises:
            VolumeError: The volume is missing. A missing volume is never treated as an empty one.
        """
        return self._names()[0]

    def _names(self) -> tuple[list[str], int, tuple[str, ...]]:
        """Names, how many were left out, and folders with other names."""
        with self._root() as root, reporting("looking at the volume"):
            with os.scandir(root) as entries:
                folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            found = sorted(filter(_is_name, folders))
            others = sorted(
                name for name in folders if not (_is_name(name) or name.startswith(".") or name in SYSTEM_FOLDERS)
            )
            misnamed = tuple(others[:MAX_MISNAMED])
            if len(found) <= MAX_NAMES:
                return found, 0, misnamed
            # Folders that anything else has left there must not hide an adapter in use.
            looked_at = found[:MAX_FOLDERS]
            has_pointer = {name for name in looked_at if _is_there(f"{name}/{CURRENT_FILE}", root)}
        kept = sorted(sorted(looked_at, key=lambda name: name not in has_pointer)[:MAX_NAMES])
        return kept, len(found) - len(kept), misnamed

    def look(self) -> VolumeContent:
        """List every adapter on the volume; one that cannot be read hides no other.

        Returns:
            Listings and faults, without adapters that vanish in the meantime.

        Raises:
            VolumeError: The volume is missing.
        """
        names, num_left_out, misnamed = self._names()
        content = VolumeContent({}, {}, num_left_out, misnamed)
        for name in names:
            try:
                content.listings[name] = self.listing(name)
            except VolumeError as error:
                if error.fault is Fault.VOLUME_UNAVAILABLE:
                    raise
                if error.fault is not Fault.UNKNOWN_ADAPTER:
                    content.faults[name] = error.fault
        return content

    def discover(self) -> dict[str, AdapterListing]:
        """List every adapter on the volume.

        Returns:
            Listings by name, without adapters that vanish in the meantime.

        Raises:
            VolumeError: The volume is missing, or an adapter's folder cannot be read.
        """
        content = self.look()
        for name, fault in content.faults.items():
            raise VolumeError(fault, f"{name} cannot be listed")
        return content.listings

    def listing(self, name: str, besides: int = 0) -> AdapterListing:
        """List one adapter.

        Args:
            name: Name of an adapter.
            besides: A version to examine however old it is, as those that the pointer names are; 0: none.

        Returns:
            Its versions and its pointer.

        Raises:
            VolumeError: The adapter or the volume is missing.
        """
        with self.folder(name) as folder, reporting(f"looking at {name}"):
            # The pointer first: the version it names was there before it, so the listing that follows includes it.
            pointer, fault = _read_pointer(folder)
            entries = os.listdir(folder)
            named = {pointer.current, *pointer.former} if pointer else set()
            numbers = {number for number in map(parse_version, entries) if number is not None}
            withdrawn = _withdrawn(entries)
            left = sorted(numbers - withdrawn)
            looked_at = sorted({*left[-MAX_LISTED_VERSIONS:], *(named | {besides}).intersection(left)})
            complete = {number for number in looked_at if _is_there(f"{number}/{MANIFEST_FILE}", folder)}
        return AdapterListing(
            name,
            versions=tuple(number for number in looked_at if number in complete),
            withdrawn=tuple(sorted(withdrawn)),
            incomplete=tuple(number for number in looked_at if number not in complete),
            current=pointer.current if pointer else None,
            former=pointer.former if pointer else (),
            fault=fault,
            newest=max(numbers | withdrawn | named, default=0),
            has_loose_files=not {WEIGHTS_FILE, CONFIG_FILE}.isdisjoint(entries),
        )

    def resolve(self, reference: str) -> AdapterRef:
        """The version that `name` or `name@version` means now.

        Args:
            reference: Untrusted text, such as a request's `model_id`.

        Returns:
            The version that the text names; else the one in use or, if that was withdrawn, the one used before it.

        Raises:
            VolumeError: Unknown name or version, no version in use, an invalid pointer, or no volume.
        """
        name, version = parse_reference(reference)
        listing = self.listing(name, version or 0)
        if version is not None:
            if version not in listing.versions:
                raise VolumeError(Fault.UNKNOWN_VERSION, f"{name} has no version {version} that may be served")
            return AdapterRef(name, version)
        if listing.fault is not None:
            raise VolumeError(listing.fault, f"{name}/{CURRENT_FILE} cannot be understood")
        in_use = served_version(listing)
        if in_use is None:
            raise VolumeError(Fault.NO_CURRENT, f"{name} has no version in use")
        return AdapterRef(name, in_use)

    def activate(self, reference: AdapterRef) -> None:
        """Point `current` at a version.

        Args:
            reference: A complete version that was not withdrawn.

        Raises:
            VolumeError: There is no such version, or the volume cannot be written.
        """
        listing = self.listing(reference.name, reference.version)
        if reference.version not in listing.versions:
            raise VolumeError(Fault.UNKNOWN_VERSION, f"{reference} is not there to be activated")
        self.point(listing, reference.version)

    def point(self, listing: AdapterListing, version: int) -> None:
        """Replace the pointer; the version it named becomes the first of the former ones.

        Args:
            listing: The adapter, as last listed.
            version: The version to put into use; not checked.

        Raises:
            VolumeError: The volume cannot be written.
        """
        before = [listing.current, *listing.former] if listing.current else list(listing.former)
        former = tuple(number for number in dict.fromkeys(before) if number not in {version, *listing.withdrawn})
        with self.folder(listing.name) as folder, reporting(f"pointing {listing.name} at version {version}"):
            replace_file(CURRENT_FILE, pointer_bytes(Pointer(version, former)), folder, POINTER_PREFIX)

    @contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """Open an adapter's folder without following a link below the root.

        Args:
            name: Name of an adapter; untrusted text.

        Yields:
            The folder's descriptor.

        Raises:
            VolumeError: The name is invalid, or the adapter or the volume is missing.
        """
        check_name(name)
        with self._root() as root:
            descriptor = _open_child(name, root, Fault.UNKNOWN_ADAPTER)
        with closing_descriptor(descriptor):
            yield descriptor

    @contextmanager
    def version_folder(self, reference: AdapterRef) -> Iterator[int]:
        """Open a version's folder in the same way.

        Args:
            reference: A version on the volume.

        Yields:
            The folder's descriptor.

        Raises:
            VolumeError: The version or the volume is missing.
            AdapterRefusedError: The folder is a link (`symlink`).
        """
        entry = str(reference.version)
        with self.folder(reference.name) as parent:
            if _is_link(entry, parent):
                raise AdapterRefusedError(Reason.SYMLINK, f"{reference} is a link")
            descriptor = _open_child(entry, parent, Fault.UNKNOWN_VERSION)
        with closing_descriptor(descriptor):
            yield descriptor

    @contextmanager
    def _root(self) -> Iterator[int]:
        try:
            descriptor = folder_descriptor(self.root)
        except OSError as error:
            raise VolumeError(Fault.VOLUME_UNAVAILABLE, f"the volume cannot be opened: {error.strerror}") from error
        with closing_descriptor(descriptor):
            yield descriptor


def served_version(listing: AdapterListing) -> int | None:
    """The version that a name without a version means.

    Args:
        listing: As `AdapterVolume.listing` returns it.

    Returns:
        The version that the pointer names or, if that is missing or withdrawn, the latest former one that is not; None
        if there is none. A version that was never in use is not chosen.
    """
    candidates = [listing.current, *listing.former]
    return next((number for number in candidates if number in listing.versions), None)


def _is_there(path: str, inside: int) -> bool:
    """Whether a path below a folder exists; False if a part of it is a file or a dangling link."""
    try:
        return entry_exists(path, inside)
    except (NotADirectoryError, PermissionError):
        return False


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except VolumeError:
        return False
    return True


def _withdrawn(entries: list[str]) -> set[int]:
    marks = (entry.removesuffix(WITHDRAWN_SUFFIX) for entry in entries if entry.endswith(WITHDRAWN_SUFFIX))
    return {number for number in map(parse_version, marks) if number is not None}


def _read_pointer(folder: int) -> tuple[Pointer | None, Fault | None]:
    """The pointer, or what is wrong with it; neither if there is no pointer."""
    try:
        data = read_small(CURRENT_FILE, folder, MAX_POINTER_BYTES)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        data = None
    pointer = parse_pointer(data) if data is not None else None
    return pointer, None if pointer else Fault.POINTER_INVALID


def _open_child(name: str, inside: int, fault: Fault) -> int:
    try:
        return folder_descriptor(name, inside)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            raise VolumeError(fault, f"{name} is no folder there") from error
        raise volume_error(error, f"opening {name}") from error


def _is_link(name: str, inside: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode)
    except OSError:
        return False  # opening it will report the error
