"""What adapters call the base model's revision: the repository's commit, or the SHA-256 of the weights.

Adapters name the one that their trainer had before it: see `base.revision` in docs/adapters.md. Free of torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from shared.contract.identity import weights_revision

_COMMIT = re.compile(r"[0-9a-f]{40}")


def base_revisions(checkpoint: str) -> frozenset[str]:
    """Every name of a loaded checkpoint's revision; reads all of its weights where it lies in a folder.

    Args:
        checkpoint: A folder, or a repository of the Hugging Face Hub that has been downloaded.

    Returns:
        Commit or fingerprint; empty where neither can be told, so that no adapter fits.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        # A snapshot that the Hub's client made carries the commit as its name.
        commit = folder.resolve().name
        revision = weights_revision(folder)
        return frozenset({revision} if revision else ()) | frozenset({commit} if _COMMIT.fullmatch(commit) else ())
    try:
        snapshot = Path(snapshot_download(checkpoint, allow_patterns=["config.json"], local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return frozenset()
    return frozenset({snapshot.name} if _COMMIT.fullmatch(snapshot.name) else ())
