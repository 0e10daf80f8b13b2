"""Where adapters lie and which version is in use: the layout of the shared volume, read and pointed at.

    <root>/<name>/<version>/            adapter_model.safetensors, adapter_config.json, manifest.json
    <root>/<name>/current               the version in use; see `pointer`
    <root>/<name>/<version>.withdrawn   JSON: why that version must not be served any more
    <root>/<name>/.*                    somebody's unfinished work

Owns names, discovery, the pointer and the marks of withdrawal; publishing is `publication`'s, judging content is
`verification`'s. Reading works on a volume that is mounted read-only. Nothing is locked: every change is one rename.
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
"""The newest versions of an adapter that are looked at, besides those that the pointer names. Bounds a poll's cost."""
MAX_NAMES = 4096
"""Adapters that a volume is searched for; the first by name."""

_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class AdapterListing:
    """What lies under one name."""

    name: str
    versions: tuple[int, ...]
    """Complete ones that were not withdrawn, ascending."""
    withdrawn: tuple[int, ...]
    incomplete: tuple[int, ...]
    """Folders without a manifest: not published in the way of the contract, never to be served."""
    current: int | None
    """What the pointer names, whether or not it can be served."""
    former: tuple[int, ...]
    """What it named before, newest first."""
    fault: Fault | None = None
    """Set where the pointer cannot be understood."""
    newest: int = 0
    """Highest number that was ever taken; the next version is above it."""


class AdapterVolume:
    """Adapters under one folder; holds no state but its place, so that any number of them may look at it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Adapters on the volume, by name.

        Returns:
            Folders with the name of an adapter; anything else is somebody else's.

        Raises:
            VolumeError: The volume is not there. That is never the same as an empty one.
        """
        with self._root() as root, reporting("looking at the volume"), os.scandir(root) as entries:
            found = [entry.name for entry in entries if _is_name(entry.name) and entry.is_dir(follow_symlinks=False)]
        return sorted(found)[:MAX_NAMES]

    def discover(self) -> dict[str, AdapterListing]:
        """Everything on the volume.

        Returns:
            Listings by name. An adapter that vanishes while it is looked at is left out.

        Raises:
            VolumeError: The volume is not there.
        """
        listings = {}
        for name in self.names():
            try:
                listings[name] = self.listing(name)
            except VolumeError as error:
                if error.fault is not Fault.UNKNOWN_ADAPTER:
                    raise
        return listings

    def listing(self, name: str, besides: int = 0) -> AdapterListing:
        """What lies under one name.

        Args:
            name: The adapter.
            besides: A version to look at in any case, like those that the pointer names, however old it is.

        Returns:
            Its versions and its pointer.

        Raises:
            VolumeError: There is no such adapter, or no volume.
        """
        with self.folder(name) as folder, reporting(f"looking at {name}"):
            # The pointer first: what it names was there before it, so the list that follows has it.
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
        )

    def resolve(self, reference: str) -> AdapterRef:
        """The version that a name, or `name@version`, means now.

        Args:
            reference: What a request or a person wrote.

        Returns:
            The version; without a pin the one in use or, where that was withdrawn, the one in use before it.

        Raises:
            VolumeError: No such name or version, nothing in use, a broken pointer, or no volume.
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
        """Swap the pointer; what it named moves into its memory.

        Args:
            listing: The adapter, as last seen.
            version: What it shall name.

        Raises:
            VolumeError: The volume cannot be written.
        """
        before = [listing.current, *listing.former] if listing.current else list(listing.former)
        former = tuple(number for number in dict.fromkeys(before) if number not in {version, *listing.withdrawn})
        with self.folder(listing.name) as folder, reporting(f"pointing {listing.name} at version {version}"):
            replace_file(CURRENT_FILE, pointer_bytes(Pointer(version, former)), folder, POINTER_PREFIX)

    @contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """Open an adapter's folder, reached without following a link below the root.

        Args:
            name: The adapter.

        Yields:
            The folder's descriptor.

        Raises:
            VolumeError: The name is none, there is no such adapter, or no volume.
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
            reference: The version.

        Yields:
            The folder's descriptor.

        Raises:
            VolumeError: There is no such version, or no volume.
            AdapterRefusedError: Its place is taken by a link (`symlink`).
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
    """The version that a name without a pin means.

    Args:
        listing: The adapter.

    Returns:
        What the pointer names or, where that was withdrawn or is not there, the first before it that is; None where
        there is none. A version that was never in use is not chosen.
    """
    candidates = [listing.current, *listing.former]
    return next((number for number in candidates if number in listing.versions), None)


def _is_there(path: str, inside: int) -> bool:
    """Whether an entry below a folder is there; a part that is a file, or a link to nowhere, means no."""
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
    """What the pointer says, and what is wrong with it; neither where there is none."""
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
        return False  # opening it will say what is wrong
