"""Publishes a version: written to a temporary folder, synced, renamed into place and, by default, put into use.

Owns the order of the steps, which ensures that a crash at any moment leaves either no version or a complete one. Takes
no lock: a number belongs to the first publisher that renames onto it, and others take the next. The trainer decides
whether an adapter is good enough.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.contract.durable import (
    COPY_BYTES,
    closing_descriptor,
    entry_exists,
    folder_descriptor,
    read_small,
    sync_folder,
    write_new,
)
from shared.contract.identity import MAX_VERSION, AdapterRef, check_name
from shared.contract.leftovers import discard
from shared.contract.lora_content import ContentLimits, LoraContent, check_modules, read_content
from shared.contract.manifest import (
    MAX_MANIFEST_BYTES,
    AdapterManifest,
    BaseIdentity,
    CodeVersion,
    Evaluation,
    FileRecord,
    TrainingData,
    parse_manifest,
    to_json,
    utc,
)
from shared.contract.peft_config import MAX_CONFIG_BYTES, parse_config, published_config
from shared.contract.refusals import AdapterRefusedError, Fault, Reason, VolumeError, reporting
from shared.contract.verification import ServingPolicy, check_manifest
from shared.contract.volume import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, AdapterVolume

PARTIAL_PREFIX = ".partial-"
MAX_ATTEMPTS = 1000
"""Numbers that a publisher tries; each one it loses was taken by another publisher."""

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True, slots=True)
class Announcement:
    """The part of the manifest that the publisher states; the rest is read from the files."""

    name: str
    base: BaseIdentity
    code: CodeVersion
    evaluation: Evaluation | None = None
    training_data: TrainingData | None = None
    forced: str | None = None
    """Why it is published although it is not proven better; None if it is."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is now on the volume."""

    reference: AdapterRef
    manifest: AdapterManifest
    in_use: int | None
    """The version that the pointer names now; a later one if another publisher was faster."""


def publish(
    volume: AdapterVolume,
    source: Path,
    announcement: Announcement,
    *,
    activate: bool = True,
    policy: ServingPolicy | None = None,
) -> Published:
    """Publish a PEFT folder as the next version of an adapter.

    Args:
        volume: Its root must exist and be writable.
        source: Folder with adapter_config.json and adapter_model.safetensors; other files are not published.
        announcement: The statements of the manifest that are not read from the files.
        activate: Whether the version goes into use at once.
        policy: Checks that the version must pass, ideally those of the service that will read it.

    Returns:
        The new version.

    Raises:
        AdapterRefusedError: The adapter must not be published.
        VolumeError: The volume failed. Unless the message is about pointing, nothing was published and the call may be
            repeated.
    """
    check_name(announcement.name)
    policy = policy or ServingPolicy()
    identifier = uuid.uuid4().hex
    partial = PARTIAL_PREFIX + identifier
    with _made_folder(volume, announcement.name) as folder, reporting(f"publishing {announcement.name}"):
        try:
            os.mkdir(partial, dir_fd=folder)
            with closing_descriptor(folder_descriptor(partial, folder)) as inside:
                place = volume.root / announcement.name / partial
                content, files = _fill(inside, place, source, announcement, policy.limits)
                draft = _draft(announcement, identifier, content, files, activate)
                check_manifest(draft, policy)
                if policy.module_shapes is not None:
                    check_modules(content, policy.module_shapes)
                manifest = _take_number(volume, folder, inside, partial, draft)
        finally:
            # After the rename there is no such entry. If the process is killed, `sweep` removes it later.
            discard(partial, folder)
        sync_folder(folder)
    in_use = bring_forward(volume, manifest.reference) if activate else volume.listing(announcement.name).current
    return Published(manifest.reference, manifest, in_use)


def bring_forward(volume: AdapterVolume, reference: AdapterRef) -> int | None:
    """Put a version into use unless a later one has been published to be used at once.

    Publishers may finish in another order than they took their numbers, but the latest version must be in use in the
    end. So each of them looks again after it has written: the last writer sees everything that was published before.

    Args:
        volume: Must be writable.
        reference: The version just published.

    Returns:
        The version in use afterwards.

    Raises:
        VolumeError: The volume failed.
    """
    pointed = 0
    for _ in range(MAX_ATTEMPTS):
        listing = volume.listing(reference.name)
        later = (number for number in reversed(listing.versions) if number >= reference.version)
        newest = next((number for number in later if _may_go_ahead(volume, reference, number)), 0)
        if newest <= pointed or listing.current == newest:
            return listing.current
        volume.point(listing, newest)
        pointed = newest
    raise VolumeError(Fault.CONTENDED, f"pointing {reference.name} at its newest version")


@contextmanager
def _made_folder(volume: AdapterVolume, name: str) -> Iterator[int]:
    """The adapter's folder, made if it is new. The root is never made: it may be a missing mount."""
    try:
        root = folder_descriptor(volume.root)
    except OSError as error:
        raise VolumeError(Fault.VOLUME_UNAVAILABLE, f"{volume.root} is no folder") from error
    with closing_descriptor(root), reporting(f"making a folder for {name}"):
        is_new = not entry_exists(name, root)
        if is_new:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=root)
            sync_folder(root)
    try:
        with volume.folder(name) as folder:
            yield folder
    except BaseException:
        if is_new:
            # A refused adapter leaves nothing; the folder stays if another publisher has put something into it.
            with suppress(OSError):
                (volume.root / name).rmdir()
        raise


def _fill(
    inside: int, partial: Path, source: Path, announcement: Announcement, limits: ContentLimits
) -> tuple[LoraContent, dict[str, FileRecord]]:
    """Write both files, then read them back and check them."""
    data = _source_config(source)
    config = published_config(parse_config(data), announcement.base.model_id)
    files = {
        CONFIG_FILE: _write_hashed(CONFIG_FILE, iter([config]), inside),
        WEIGHTS_FILE: _write_hashed(WEIGHTS_FILE, _source_weights(source, limits.max_weights_bytes), inside),
    }
    return read_content(partial / CONFIG_FILE, partial / WEIGHTS_FILE, limits), files


def _source_config(source: Path) -> bytes:
    try:
        with (source / CONFIG_FILE).open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterRefusedError(Reason.FILE_MISSING, f"{source} has no {CONFIG_FILE}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterRefusedError(Reason.FILE_TOO_LARGE, f"{CONFIG_FILE} has more than {MAX_CONFIG_BYTES} bytes")
    return data


def _source_weights(source: Path, limit_bytes: int) -> Iterator[bytes]:
    path = source / WEIGHTS_FILE
    if not path.is_file():
        if (source / "adapter_model.bin").exists():
            raise AdapterRefusedError(Reason.PICKLE, f"{source} has its weights in adapter_model.bin")
        raise AdapterRefusedError(Reason.FILE_MISSING, f"{source} has no {WEIGHTS_FILE}")
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            size += len(chunk)
            if size > limit_bytes:
                raise AdapterRefusedError(Reason.FILE_TOO_LARGE, f"{WEIGHTS_FILE} has more than {limit_bytes} bytes")
            yield chunk


def _write_hashed(name: str, chunks: Iterator[bytes], inside: int) -> FileRecord:
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            digest.update(chunk)
            yield chunk

    write_new(name, hashed(), inside)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=size)


def _draft(
    announcement: Announcement,
    identifier: str,
    content: LoraContent,
    files: dict[str, FileRecord],
    activate: bool,
) -> AdapterManifest:
    return AdapterManifest(
        name=announcement.name,
        version=1,
        publication_id=identifier,
        created=utc(datetime.now(UTC)),
        activate=activate,
        base=announcement.base,
        lora=content.record,
        files=files,
        evaluation=announcement.evaluation,
        training_data=announcement.training_data,
        code=announcement.code,
        forced=announcement.forced,
    )


def _take_number(
    volume: AdapterVolume, folder: int, inside: int, partial: str, draft: AdapterManifest
) -> AdapterManifest:
    """Rename the finished folder onto the first free number."""
    version = 0
    for _ in range(MAX_ATTEMPTS):
        # Also above the numbers already tried: a network file system may return a listing that is seconds old.
        version = max(version, volume.listing(draft.name).newest) + 1
        if version > MAX_VERSION:
            raise VolumeError(Fault.CONTENDED, f"{draft.name} has no number left")
        manifest = draft.model_copy(update={"version": version})
        with suppress(FileNotFoundError):
            os.unlink(MANIFEST_FILE, dir_fd=inside)
        write_new(MANIFEST_FILE, iter([to_json(manifest)]), inside)
        sync_folder(inside)
        try:
            os.rename(partial, str(version), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            # A network may lose the reply to a rename; the repeated request then fails although the rename was done.
            if _publication_id(folder, version) == draft.publication_id:
                return manifest
            if error.errno not in _TAKEN:
                raise
        else:
            return manifest
    raise VolumeError(Fault.CONTENDED, f"no number of {draft.name} was free in {MAX_ATTEMPTS} attempts")


def _publication_id(folder: int, version: int) -> str | None:
    """The version's `publication_id`; None if it cannot be read."""
    try:
        manifest = _manifest_of(folder, version)
    except OSError:
        return None
    return manifest.publication_id if manifest else None


def _may_go_ahead(volume: AdapterVolume, reference: AdapterRef, version: int) -> bool:
    """Whether a version is the one just published, or was published to be used at once too."""
    if version == reference.version:
        return True
    with volume.folder(reference.name) as folder, reporting(f"looking at {reference.name}@{version}"):
        manifest = _manifest_of(folder, version)
    return manifest is not None and manifest.activate


def _manifest_of(folder: int, version: int) -> AdapterManifest | None:
    """A version's manifest, or None if it is invalid."""
    with closing_descriptor(folder_descriptor(str(version), folder)) as inside:
        data = read_small(MANIFEST_FILE, inside, MAX_MANIFEST_BYTES)
    try:
        return parse_manifest(data) if data is not None else None
    except AdapterRefusedError:
        return None
