"""The base model's revision, with which an adapter's must match: the repository's commit, or a hash of the weights.

See `base.revision` in docs/adapters.md. Free of torch.
"""

from __future__ import annotations

from pathlib import Path

from shared.contract.identity import commit_of, downloaded_commit, weights_revision


def base_revisions(checkpoint: str) -> frozenset[str]:
    """All valid names of a checkpoint's revision; reads every weight if the checkpoint is a folder.

    Args:
        checkpoint: A folder, or a repository of the Hugging Face Hub that has been downloaded.

    Returns:
        Commit, SHA-256 or both; empty if neither is known, so that no adapter matches.
    """
    folder = Path(checkpoint)
    is_folder = folder.is_dir()
    known = (weights_revision(folder), commit_of(folder)) if is_folder else (downloaded_commit(checkpoint),)
    return frozenset(revision for revision in known if revision)
