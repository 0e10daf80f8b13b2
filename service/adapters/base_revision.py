"""The base model's revision, with which an adapter's must match: the repository's commit, or a hash of the weights.

See `base.revision` in docs/adapters.md. Free of torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from shared.contract.identity import weights_revision

_COMMIT = re.compile(r"[0-9a-f]{40}")


def base_revisions(checkpoint: str) -> frozenset[str]:
    """All valid names of a checkpoint's revision; reads every weight if the checkpoint is a folder.

    Args:
        checkpoint: A folder, or a repository of the Hugging Face Hub that has been downloaded.

    Returns:
        Commit, SHA-256 or both; empty if neither is known, so that no adapter matches.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        # The Hub's client names the folder of a snapshot after the commit.
        commit = folder.resolve().name
        revision = weights_revision(folder)
        return frozenset({revision} if revision else ()) | frozenset({commit} if _COMMIT.fullmatch(commit) else ())
    # Imported here because it is slow, and a folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(checkpoint, allow_patterns=["config.json"], local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return frozenset()
    return frozenset({snapshot.name} if _COMMIT.fullmatch(snapshot.name) else ())
