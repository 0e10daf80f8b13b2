"""Adapters of random numbers for a checkpoint, as PEFT folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.contract.identity import weights_revision
from shared.contract.manifest import BaseIdentity
from tests.support.lora import random_adapter, write_files
from tests.support.nano import NANO


def base_of(checkpoint: Path = NANO) -> BaseIdentity:
    """What adapters for a checkpoint name as their base."""
    revision = weights_revision(checkpoint)
    assert revision is not None
    return BaseIdentity(model_id=checkpoint.name, revision=revision)


def write_adapter(folder: Path, model: Any, seed: int, *, rank: int = 8, strength: float = 1.0) -> Path:
    """A PEFT folder with matrices for every projection that is served."""
    return write_files(folder, random_adapter(model, seed, rank=rank, strength=strength))
