"""Adapters of random numbers for a checkpoint, as PEFT folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shared.contract.identity import weights_revision
from shared.contract.manifest import BaseIdentity
from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from tests.support.adapters import peft_config
from tests.support.lora import ALL, random_adapter
from tests.support.nano import NANO


def base_of(checkpoint: Path = NANO) -> BaseIdentity:
    """What adapters for a checkpoint name as their base."""
    revision = weights_revision(checkpoint)
    assert revision is not None
    return BaseIdentity(model_id=checkpoint.name, revision=revision)


def write_adapter(folder: Path, model: Any, seed: int, *, rank: int = 8, strength: float = 1.0) -> Path:
    """A PEFT folder with matrices for every projection that is served."""
    files = random_adapter(model, seed, rank=rank, strength=strength)
    folder.mkdir(parents=True)
    config = peft_config(rank, lora_alpha=files.config["lora_alpha"], target_modules=sorted(ALL))
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(dict(files.tensors), folder / WEIGHTS_FILE)
    return folder
