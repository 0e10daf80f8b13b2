"""Intermediate checkpoints of nano: small bfloat16 shards, and the state of the run.

The published checkpoint is written by `shared.deepseek_ocr.checkpoint`; this format is only for continuing a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.deepseek_ocr.draft_head import load_draft_head
from shared.deepseek_ocr.loading import load_checkpoint

SHARD_BYTES = 14 * 2**20
Heads = Mapping[str, nn.Module]
"""Modules that learn with the model and are stored with it in a run's shards, by the prefix of their keys."""
HEAD_NAMES = ("spotter", "draft")


def save_shards(model: nn.Module, folder: Path, run: dict[str, Any], heads: Heads = MappingProxyType({})) -> None:
    """Write the parameters as bfloat16 shards and `run.json`, replacing existing files one by one.

    `run.json` is written last and names the shards with their sizes, so that an incomplete write is detected. `run` is
    further state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    state = dict(model.state_dict())
    for prefix, head in heads.items():
        state.update({f"{prefix}.{name}": value for name, value in head.state_dict().items()})
    for name, value in state.items():
        tensor = value.detach().to("cpu", torch.bfloat16).contiguous()
        size = tensor.numel() * 2
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    files = {}
    for i, shard in enumerate(shards):
        path = folder / f"shard-{i}.safetensors"
        save_file(shard, str(path) + ".part")
        os.replace(str(path) + ".part", path)
        files[path.name] = path.stat().st_size
    part = folder / "run.json.part"
    part.write_text(json.dumps({**run, "files": files}, indent=1))
    os.replace(part, folder / "run.json")


def carry_on(model: nn.Module, folder: Path, heads: Heads = MappingProxyType({})) -> dict[str, float]:
    """Load the state of an earlier run: its shards, or a published checkpoint, whose 8-bit rows lose little.

    Args:
        model: gets the parameters.
        folder: a run's `shards`, or a checkpoint such as `shared/nano`.
        heads: those that the folder has are loaded.

    Returns:
        Steps, seconds and pages of the runs so far, as far as known.

    Raises:
        ValueError: the folder holds neither, or its content is incomplete or another model's.
    """
    if (folder / "run.json").is_file():
        run = load_shards(model, folder, heads)
        return {name: run[name] for name in ("steps", "seconds", "pages")}
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} holds neither a run's shards (run.json) nor a checkpoint (model.safetensors)")
    shipped = load_checkpoint(folder, device="cpu", dtype=torch.float32).model
    assert isinstance(shipped, nn.Module)
    try:
        model.load_state_dict(shipped.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the checkpoint in {folder} is another model's") from error
    text = shipped.config.text_config
    drafting = load_draft_head(folder, text.hidden_size, text.rms_norm_eps)
    if drafting is not None and "draft" in heads:
        heads["draft"].load_state_dict(drafting.state_dict())
    return {}


def load_shards(model: nn.Module, folder: Path, heads: Heads = MappingProxyType({})) -> dict[str, Any]:
    """Load what `save_shards` wrote into a model and those heads that were saved.

    Returns the run's state, with the names of the heads that were loaded as `heads`.

    Raises `ValueError` if a shard is missing or incomplete, or the keys are not the model's.
    """
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    state: dict[str, Tensor] = {}
    for name, size in run["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{path} is missing or not {size} bytes long: the checkpoint is torn, take an older one")
        state.update(load_file(path))
    loaded = []
    for prefix in HEAD_NAMES:
        start = f"{prefix}."
        saved = {name.removeprefix(start): state.pop(name) for name in list(state) if name.startswith(start)}
        if prefix in heads and saved:
            heads[prefix].load_state_dict(saved)
            loaded.append(prefix)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"the checkpoint in {folder} is another model's: missing {missing}, unexpected {unexpected}")
    return {**run, "heads": loaded}
