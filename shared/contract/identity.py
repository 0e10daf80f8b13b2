"""Names of adapters and base models: `name`, `name@version`, and the revision of a base model.

Pure, except for reading the weights that it fingerprints and looking into the Hub's cache.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from shared.contract.refusals import Fault, VolumeError

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
MAX_VERSION = 999_999_999
REVISION_PATTERN = r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
DRAFT_FILE = "draft.safetensors"
"""A checkpoint's draft head, which changes how fast it is read and not what: adapters fit with any, or none."""
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class AdapterRef:
    """One version of an adapter."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def check_name(name: str) -> str:
    """Check the name of an adapter.

    Args:
        name: Untrusted text.

    Returns:
        The same name.

    Raises:
        VolumeError: It is not a valid name (`invalid_name`). The message does not repeat the untrusted text.
    """
    if not _NAME.fullmatch(name):
        raise VolumeError(Fault.INVALID_NAME, "this is not the name of an adapter")
    return name


def parse_version(text: str) -> int | None:
    """The version that a text states, or None. A version has no sign, no leading zero and at most nine digits."""
    return int(text) if _VERSION.fullmatch(text) else None


def parse_reference(text: str) -> tuple[str, int | None]:
    """Split `name` or `name@version`.

    Args:
        text: Untrusted text, such as a request's `model_id`.

    Returns:
        The name, and the version or None if the text names none.

    Raises:
        VolumeError: It is neither (`invalid_name`).
    """
    name, at, version_text = text.partition("@")
    version = parse_version(version_text)
    if at and version is None:
        raise VolumeError(Fault.INVALID_NAME, "this is not name@version")
    return check_name(name), version


def weights_revision(folder: Path) -> str | None:
    """Fingerprint of a checkpoint's weights: the revision that manifests give for a base model in a local folder.

    Args:
        folder: A checkpoint; it may be missing or have no `*.safetensors`.

    Returns:
        SHA-256 in hexadecimal over all `*.safetensors` files but `DRAFT_FILE`, in order of their names; None if there
        are none.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != DRAFT_FILE)
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def commit_of(folder: Path) -> str | None:
    """Commit of a repository's snapshot, after which the Hub's client names its folder.

    Args:
        folder: Of any checkpoint.

    Returns:
        40 hexadecimal digits; None if the folder's name is no commit.
    """
    name = folder.resolve().name
    return name if _COMMIT.fullmatch(name) else None


def downloaded_commit(repository: str) -> str | None:
    """Commit of a repository of the Hugging Face Hub that has been downloaded; asks nothing of the network.

    Args:
        repository: `owner/name`; any other text has no commit.

    Returns:
        40 hexadecimal digits; None if the cache has no such repository.
    """
    # Imported here because it is slow, and a folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return commit_of(Path(snapshot_download(repository, allow_patterns=["config.json"], local_files_only=True)))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
