"""From the name of a checkpoint to a model, its tokenizer and its geometry.

Owns where checkpoints are looked for: a folder, otherwise the Hugging Face Hub. `registry` names the loader of each
model. Code in a checkpoint is never run.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from shared.contract.calibration import FILE_NAME as CALIBRATION_FILE
from shared.contract.calibration import Calibration, CalibrationError, read_calibration
from shared.contract.prompts import Task, tasks_of
from shared.contract.shipped import local_model
from shared.deepseek_ocr.checkpoint import CheckpointError, read_config
from shared.deepseek_ocr.draft_head import DraftHead, load_draft_head
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.registry import MODELS, find_kind

if TYPE_CHECKING:
    from shared.deepseek_ocr.protocol import OcrModel
    from shared.deepseek_ocr.tokenizer import OcrTokenizer

TOKENIZER_FILE = "tokenizer.json"
HUB_FILES = ["config.json", TOKENIZER_FILE, CALIBRATION_FILE, "*.safetensors", "*.safetensors.index.json"]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A model ready to read, with its tokenizer and its geometry."""

    model: OcrModel
    tokenizer: OcrTokenizer
    geometry: GeometryConfig
    model_id: str
    """The repository, or the folder's name."""
    calibration: Calibration | None = None
    """None if the checkpoint has none."""
    tasks: tuple[Task, ...] = tuple(Task)
    """What it can do."""
    draft_head: DraftHead | None = None
    """On the CPU, in float32; None if the checkpoint has none."""


def load_checkpoint(
    folder_or_repo: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layers_device: torch.device | str | None = None,
) -> LoadedCheckpoint:
    """Load a model of the family.

    Args:
        folder_or_repo: a folder, or a repository `owner/name` of the Hub, which is downloaded once and kept.
        device: of the weights.
        dtype: of the weights, whatever the files have.
        layers_device: of the weights in the decoder's layers, for a caller that moves the layers one by one; None: as
            the others. Ignored for DeepSeek-OCR-2.

    Returns:
        The checkpoint, its model in evaluation mode.

    Raises:
        CheckpointError: The checkpoint is missing or broken; the message names the file, key or value.
    """
    folder, model_id = find_checkpoint(folder_or_repo)
    config = read_config(folder)
    model_type = config.get("model_type")
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{folder / TOKENIZER_FILE} does not exist")
    kind = find_kind(model_type)
    if kind is None:
        known = " and ".join(map(repr, MODELS))
        raise CheckpointError(f"{folder}: config.json has model_type {model_type!r}; known: {known}")
    tasks = _tasks(folder, config, tasks_of(kind.prompts))
    try:
        maps = read_calibration(folder)
    except CalibrationError as error:
        raise CheckpointError(str(error)) from error
    model: OcrModel = pkgutil.resolve_name(kind.loader)(folder, device, dtype, layers_device)
    text = model.config.text_config
    drafts = load_draft_head(folder, text.hidden_size, text.rms_norm_eps)
    tokenizer = load_tokenizer(folder, model.config)
    return LoadedCheckpoint(model, tokenizer, model.geometry, model_id, maps, tasks, drafts)


def _tasks(folder: Path, config: dict[str, Any], prompted: tuple[Task, ...]) -> tuple[Task, ...]:
    """What a checkpoint's config.json says that it can do; public ones say nothing and can do all that has a prompt."""
    named = config.get("tasks")
    if named is None:
        return prompted
    known = tuple(task for task in prompted if isinstance(named, list) and str(task) in named)
    if not known or len(known) != len(named):
        raise CheckpointError(f"{folder}: config.json has tasks {named!r}; known: {', '.join(prompted)}")
    return known


def find_checkpoint(folder_or_repo: str | Path) -> tuple[Path, str]:
    """Find a checkpoint's files, and download them if necessary.

    Args:
        folder_or_repo: a folder, or a repository `owner/name` of the Hub.

    Returns:
        The folder, and the model's name: the repository, or the folder's name.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    folder = Path(local_model(folder_or_repo))
    if folder.is_dir():
        return folder, folder.resolve().name
    if isinstance(folder_or_repo, Path) or not _REPOSITORY.fullmatch(folder_or_repo):
        raise CheckpointError(f"{folder_or_repo} is neither a folder nor a repository named owner/name")
    try:
        return Path(snapshot_download(folder_or_repo, allow_patterns=HUB_FILES)), folder_or_repo
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{folder_or_repo} is no folder and cannot be fetched from the Hub: {error}") from error


def load_tokenizer(folder: Path, config: Any) -> OcrTokenizer:
    """Read a checkpoint's tokenizer.

    Args:
        folder: of a checkpoint.
        config: of the model; may set ids of special tokens.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: The file is not a tokenizer of this family.
    """
    from shared.deepseek_ocr.tokenizer import OcrTokenizer, TokenizerError

    ids = {name: getattr(config.text_config, name) for name in _TOKEN_IDS}
    try:
        return OcrTokenizer.from_file(folder / TOKENIZER_FILE, ids | {"image_token_id": config.image_token_id})
    except TokenizerError as error:
        raise CheckpointError(f"{folder}: {error}") from error
