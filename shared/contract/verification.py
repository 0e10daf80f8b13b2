"""Decides whether a published version may be served: copies it to private storage, then checks everything there.

Only the copy is checked, since a file on a shared volume may change or shrink while it is read. Owns the order of the
checks; `manifest`, `lora_content` and the modules they use own the checks themselves. Does not import torch: the
service loads the weights and reads a page with them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shared.contract.durable import chunks_of, closing_descriptor, folder_descriptor, open_file, read_small, write_new
from shared.contract.identity import AdapterRef
from shared.contract.lora_content import ContentLimits, LoraContent, check_modules, read_content
from shared.contract.manifest import MAX_MANIFEST_BYTES, AdapterManifest, FileRecord, parse_manifest
from shared.contract.peft_config import MAX_CONFIG_BYTES
from shared.contract.refusals import AdapterRefusedError, Reason, reporting
from shared.contract.volume import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, AdapterVolume
from shared.contract.withdrawal import withdrawal_reason

CONTENT_FILES = (CONFIG_FILE, WEIGHTS_FILE)
MAX_ENTRIES = 64
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill"})
"""Formats whose usual loaders run code from the file."""


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """What a reader serves; None accepts anything."""

    base_model: str | None = None
    base_revisions: frozenset[str] | None = None
    """All names of the revision served, such as the repository's commit and the weights' SHA-256."""
    module_shapes: Mapping[str, tuple[int, int]] | None = None
    """`(outputs, inputs)` of the base model's linear modules, by whole name."""
    limits: ContentLimits = field(default_factory=ContentLimits)


@dataclass(frozen=True, slots=True)
class VerifiedAdapter:
    """A private copy that passed every check."""

    folder: Path
    manifest: AdapterManifest
    content: LoraContent

    @property
    def weights_path(self) -> Path:
        """The copy's safetensors file."""
        return self.folder / WEIGHTS_FILE


def verify(volume: AdapterVolume, reference: AdapterRef, private: Path, policy: ServingPolicy) -> VerifiedAdapter:
    """Copy a version and check the copy.

    Args:
        volume: May be read-only.
        reference: A version on the volume.
        private: Folder to make for the copy; its parent exists, and only this process writes there. It is deleted
            unless the version passes.
        policy: Base model and limits of the reader.

    Returns:
        The copy.

    Raises:
        AdapterRefusedError: The version must not be served; trying again cannot help.
        VolumeError: The volume or the private storage failed; trying again may help.
    """
    with reporting(f"making room for {reference}"):
        private.mkdir(mode=0o700)
    passed = False
    try:
        manifest = _copy(volume, reference, private, policy)
        content = read_content(private / CONFIG_FILE, private / WEIGHTS_FILE, policy.limits)
        check_agreement(manifest, content)
        if policy.module_shapes is not None:
            check_modules(content, policy.module_shapes)
        passed = True
    finally:
        if not passed:
            shutil.rmtree(private, ignore_errors=True)
    return VerifiedAdapter(private, manifest, content)


def check_manifest(manifest: AdapterManifest, policy: ServingPolicy) -> None:
    """Make the checks that need only the manifest.

    Args:
        manifest: The publisher's statements; not yet compared with the files.
        policy: Base model and limits of the reader.

    Raises:
        AdapterRefusedError: About files, evaluation, base model, rank or size.
    """
    _check_files(manifest.files)
    if manifest.forced is None:
        if manifest.evaluation is None:
            raise AdapterRefusedError(Reason.NOT_EVALUATED, "the manifest has neither evaluation nor forced")
        if manifest.evaluation.objections:
            raise AdapterRefusedError(Reason.NOT_BETTER, "; ".join(manifest.evaluation.objections[:3]))
    if policy.base_model is not None and manifest.base.model_id != policy.base_model:
        raise AdapterRefusedError(
            Reason.WRONG_BASE_MODEL, f"trained on {manifest.base.model_id!a}, served is {policy.base_model}"
        )
    if policy.base_revisions is not None and manifest.base.revision not in policy.base_revisions:
        raise AdapterRefusedError(Reason.WRONG_BASE_REVISION, f"trained on revision {manifest.base.revision}")
    if manifest.lora.rank > policy.limits.max_rank:
        raise AdapterRefusedError(
            Reason.RANK_TOO_LARGE, f"rank {manifest.lora.rank}, the limit is {policy.limits.max_rank}"
        )
    if manifest.files[WEIGHTS_FILE].size_bytes > policy.limits.max_weights_bytes:
        raise AdapterRefusedError(
            Reason.FILE_TOO_LARGE,
            f"{WEIGHTS_FILE} has {manifest.files[WEIGHTS_FILE].size_bytes} bytes, "
            f"the limit is {policy.limits.max_weights_bytes}",
        )


def check_agreement(manifest: AdapterManifest, content: LoraContent) -> None:
    """Compare the manifest with the files.

    Args:
        manifest: The publisher's statements.
        content: Read from the files that the manifest describes.

    Raises:
        AdapterRefusedError: They contradict each other (`config_conflict`).
    """
    stated, found = manifest.lora.model_dump(), content.record.model_dump()
    different = sorted(key for key in stated if stated[key] != found[key])
    if different:
        raise AdapterRefusedError(Reason.CONFIG_CONFLICT, f"the manifest's lora.{different[0]} differs from the files")
    if content.config.base_model != manifest.base.model_id:
        raise AdapterRefusedError(Reason.CONFIG_CONFLICT, "manifest and config name different base models")


def check_entries(folder: int, expected: frozenset[str]) -> None:
    """Check a folder's entries before any of them is opened.

    Args:
        folder: Descriptor of a version's folder.
        expected: Names that may occur; a missing one is no error here.

    Raises:
        AdapterRefusedError: `symlink`, `pickle`, `not_a_regular_file` or `unexpected_file`.
    """
    with os.scandir(folder) as listed:
        entries = [entry for entry, _ in zip(listed, range(MAX_ENTRIES), strict=False)]
    for entry in sorted(entries, key=lambda entry: entry.name):
        shown = ascii(entry.name)
        if entry.is_symlink():
            raise AdapterRefusedError(Reason.SYMLINK, f"{shown} is a link")
        if PurePosixPath(entry.name).suffix.lower() in PICKLE_SUFFIXES:
            raise AdapterRefusedError(Reason.PICKLE, shown)
        if not entry.is_file(follow_symlinks=False):
            raise AdapterRefusedError(Reason.NOT_A_REGULAR_FILE, shown)
        if entry.name not in expected:
            raise AdapterRefusedError(Reason.UNEXPECTED_FILE, shown)


def checked_chunks(descriptor: int, status: os.stat_result, name: str, limit_bytes: int) -> Iterator[bytes]:
    """Read an untrusted file.

    Args:
        descriptor: The file, opened without following a link.
        status: Of the same file.
        name: For messages.
        limit_bytes: A larger file is refused, after so many bytes.

    Yields:
        The file's content in chunks.

    Raises:
        AdapterRefusedError: `not_a_regular_file`, `hard_link` or `file_too_large`.
    """
    if not stat.S_ISREG(status.st_mode):
        raise AdapterRefusedError(Reason.NOT_A_REGULAR_FILE, name)
    if status.st_nlink > 1:
        raise AdapterRefusedError(Reason.HARD_LINK, f"{name} has {status.st_nlink} names")
    seen = 0
    for chunk in chunks_of(descriptor, limit_bytes):
        seen += len(chunk)
        if seen > limit_bytes:
            raise AdapterRefusedError(Reason.FILE_TOO_LARGE, f"{name} has more than {limit_bytes} bytes")
        yield chunk


def _copy(volume: AdapterVolume, reference: AdapterRef, private: Path, policy: ServingPolicy) -> AdapterManifest:
    withdrawn = withdrawal_reason(volume, reference)
    if withdrawn is not None:
        raise AdapterRefusedError(Reason.WITHDRAWN, f"{reference} was withdrawn: {withdrawn!a}")
    with volume.version_folder(reference) as source, reporting(f"copying {reference}"):
        check_entries(source, frozenset({MANIFEST_FILE, *CONTENT_FILES}))
        data = _read_manifest(source)
        manifest = parse_manifest(data)
        if manifest.reference != reference:
            raise AdapterRefusedError(
                Reason.IDENTITY_MISMATCH, f"the manifest is about {manifest.reference}, the folder is {reference}"
            )
        check_manifest(manifest, policy)
        with closing_descriptor(folder_descriptor(private)) as target:
            for name in CONTENT_FILES:
                limit = policy.limits.max_weights_bytes if name == WEIGHTS_FILE else MAX_CONFIG_BYTES
                _copy_file(name, manifest.files[name], source, target, limit)
            write_new(MANIFEST_FILE, iter([data]), target, sync=False)
    return manifest


def _read_manifest(source: int) -> bytes:
    try:
        data = read_small(MANIFEST_FILE, source, MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise AdapterRefusedError(Reason.MANIFEST_MISSING, "the folder has none") from error
    if data is None:
        raise AdapterRefusedError(Reason.NOT_A_REGULAR_FILE, MANIFEST_FILE)
    return data


def _copy_file(name: str, record: FileRecord, source: int, target: int, limit_bytes: int) -> None:
    digest = hashlib.sha256()
    size = 0

    def hashed(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            digest.update(chunk)
            yield chunk

    try:
        with open_file(name, source) as (descriptor, status):
            # The copy is not needed after a crash, so it is not synced.
            write_new(name, hashed(checked_chunks(descriptor, status, name, limit_bytes)), target, sync=False)
    except FileNotFoundError as error:
        raise AdapterRefusedError(Reason.FILE_MISSING, name) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AdapterRefusedError(Reason.SYMLINK, f"{name} is a link") from error
        raise
    if size != record.size_bytes:
        raise AdapterRefusedError(
            Reason.SIZE_MISMATCH, f"{name} has {size} bytes, the manifest says {record.size_bytes}"
        )
    if digest.hexdigest() != record.sha256:
        raise AdapterRefusedError(Reason.CHECKSUM_MISMATCH, f"{name} has other bytes than the manifest says")


def _check_files(files: Mapping[str, FileRecord]) -> None:
    for name in sorted(files):
        if "/" in name or "\\" in name or "\0" in name or name in {".", ".."}:
            raise AdapterRefusedError(Reason.UNSAFE_PATH, f"the manifest names {name!a}")
        if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES:
            raise AdapterRefusedError(Reason.PICKLE, f"the manifest names {name!a}")
        if name not in CONTENT_FILES:
            raise AdapterRefusedError(Reason.UNEXPECTED_FILE, f"the manifest names {name!a}")
    for name in CONTENT_FILES:
        if name not in files:
            raise AdapterRefusedError(Reason.FILE_MISSING, f"the manifest does not name {name}")
