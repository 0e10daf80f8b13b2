"""Options of a training run: one typed record, filled from a preset, a YAML file and flags, in this order.

A field of `TrainingOptions` is all that a new option needs: it becomes the flag, the YAML key, the help and a member of
`run.json`. Names are the flags' names with underscores. This module imports the standard library alone, so `--help` is
quick and checking a file needs no GPU packages.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from trainer.training.errors import TrainingCode, TrainingError

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP: Final = ("gate_proj", "up_proj", "down_proj")
DEFAULT_OUTPUT: Final = Path("runs/adapter")
SCHEDULES: Final = ("cosine", "linear", "constant_with_warmup", "constant")
BACKENDS: Final = ("auto", "peft", "unsloth")
TASKS: Final = ("free", "markdown", "ocr")
ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "image_field": ("image_column",),
    "text_field": ("text_column",),
    "model_path": ("model", "base"),
    "source_type": ("source",),
    "num_samples": ("max_train_samples", "limit"),
}
"""The specification's names of flags, each with those that a command may have for it; see `docs/specification.md`."""


def _option(default: Any, meaning: str, *choices: str) -> Any:
    """A field with its help and choices; a tuple of names is a list on the command line."""
    metadata = {"help": meaning, "choices": choices or None}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Options of a run; each field's help says what it means, and `None` lets the run choose."""

    dataset_name: str = _option("", "a prepared set, or any source that `prepare` takes")
    eval_dataset_name: str | None = _option(
        None, "source of the pages to check on; default: the set's validation split"
    )
    forgetting_dataset: str | None = _option(None, "any source of general pages that must not get worse")
    output_dir: Path = _option(DEFAULT_OUTPUT, "the run's folder")  # noqa: RUF009 - a constant
    model: str = _option("shared/nano", "base model: folder or repository")
    backend: str = _option(
        "auto", "library that adds the adapter; auto: unsloth for DeepSeek-OCR-2 on CUDA, else peft", *BACKENDS
    )
    init_from: str | None = _option(None, "adapter to go on from: a run or a PEFT folder; rank and modules are its own")
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    task: str = _option("free", "the prompt to train", *TASKS)
    mode: str | None = _option(None, "resolution; default: the checkpoint's")

    image_column: str | None = _option(None, "column of the image")
    text_column: str | None = _option(None, "column of the text to produce")
    validation_share: float = _option(0.1, "share held out by content if the source names no splits")
    max_broken_share: float = _option(0.01, "maximum share of broken rows, which are left out")
    max_train_samples: int | None = _option(None, "train on the first N samples")
    max_eval_samples: int | None = _option(64, "check on the first N held-out samples, or on all")
    max_length: int = _option(4096, "tokens of a sample, image included; longer ones are left out")

    batch_size: int = _option(4, "samples per step and device")
    gradient_accumulation_steps: int = _option(1, "steps whose gradients are accumulated")
    num_epochs: float = _option(3.0, "epochs over the samples")
    max_steps: int | None = _option(None, "stop after N updates instead")
    learning_rate: float = _option(2e-4, "peak learning rate")
    lr_scheduler: str = _option("cosine", "schedule of the learning rate", *SCHEDULES)
    warmup_ratio: float = _option(0.05, "share of updates in which the learning rate rises")
    weight_decay: float = _option(0.0, "of AdamW")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm")
    seed: int = _option(0, "of the samples' order and the adapter's initial values")

    lora_rank: int = _option(16, "rank of the adapter")
    lora_alpha: float = _option(32, "the adapter's product is multiplied by alpha / rank")
    lora_dropout: float = _option(0.0, "share of inputs dropped while training")
    use_rslora: bool = _option(False, "multiply by alpha / sqrt(rank) instead")
    target_modules: tuple[str, ...] = _option(ATTENTION, "linear modules of the decoder, by the ends of their names")
    train_vision: bool = _option(False, "let targets also match vision encoders and projector")
    use_qlora: bool = _option(False, "keep frozen weights in 4 bits (CUDA)")
    gradient_checkpointing: bool = _option(False, "recompute activations to save memory")
    cuda_graphs: bool = _option(False, "replay steps as CUDA graphs, faster where kernels are short (one GPU)")

    feature_memory_gb: float = _option(2.0, "memory for vision features of a frozen encoder")
    feature_disk_gb: float = _option(20.0, "disk space for further features, in the run's folder")

    eval_steps: int | None = _option(None, "check every N updates; default: four times an epoch")
    save_steps: int | None = _option(None, "write a checkpoint every N updates; default: at every check")
    logging_steps: int = _option(10, "log every N updates")
    keep_checkpoints: int = _option(2, "number of newest checkpoints to keep")
    max_new_tokens: int | None = _option(None, "longest answer in checks; default: twice the longest known one")
    early_stopping_patience: int | None = _option(5, "stop after N checks without a better error rate, or none")

    use_tensorboard: bool = _option(True, "write TensorBoard files if it is installed")
    use_wandb: bool = _option(False, "log to Weights & Biases; WANDB_MODE=offline works")
    wandb_project: str = _option("deepsynth-ocr", "its project")
    push_to_hub: bool = _option(False, "upload the best adapter at the end")
    hub_model_id: str | None = _option(None, "repository to upload to")

    def __post_init__(self) -> None:
        for entry in fields(self):
            choices = entry.metadata.get("choices")
            value = getattr(self, entry.name)
            if choices and value not in choices:
                raise _invalid(entry.name, value, f"one of {', '.join(choices)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise _invalid(name, value, "a positive number")
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise _invalid(name, value, "at least 0 and below 1")
        if not self.target_modules:
            raise _invalid("target_modules", "()", "at least one name")
        if self.push_to_hub and not self.hub_model_id:
            raise _invalid("hub_model_id", None, "the repository's OWNER/NAME where push-to-hub is given")

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `run.json`."""
        values = asdict(self)
        return values | {"output_dir": str(self.output_dir), "target_modules": list(self.target_modules)}


_NO_LIMIT: Final = ("none", "all")
"""For a number that is a limit: there is none."""
_POSITIVE: Final = (
    "batch_size", "gradient_accumulation_steps", "num_epochs", "max_steps", "learning_rate", "max_grad_norm",
    "lora_rank", "lora_alpha", "max_length", "max_train_samples", "max_eval_samples", "eval_steps", "save_steps",
    "logging_steps", "keep_checkpoints", "max_new_tokens", "early_stopping_patience",
)  # fmt: skip
_SHARES: Final = ("validation_share", "max_broken_share", "warmup_ratio", "lora_dropout")


def option_fields() -> dict[str, Field[Any]]:
    """Every option by its name with underscores."""
    return {entry.name: entry for entry in fields(TrainingOptions)}


def make_options(*layers: Mapping[str, Any]) -> TrainingOptions:
    """Merge layers of values by name (dashes or underscores); later layers win.

    Raises `TrainingError` for an unknown name or an invalid value.
    """
    known = option_fields()
    values: dict[str, Any] = {}
    for layer in layers:
        for given, value in layer.items():
            name = str(given).replace("-", "_")
            name = next((each for each in (name, *ALIASES.get(name, ())) if each in known), name)
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise TrainingError(
                    TrainingCode.OPTION_UNKNOWN,
                    f"there is no option {given!r}",
                    f"did you mean {near[0]}?" if near else "see `python -m trainer train --help`",
                )
            values[name] = value_of(name, value)
    return TrainingOptions(**values)


def load_file(path: Path) -> dict[str, Any]:
    """Read options from a YAML file; raises `TrainingError` if it cannot be read or is not a mapping."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            f"{path} cannot be read: {error.strerror or error}",
            "give the path of a YAML file to --config, or leave it out",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(TrainingCode.OPTION_INVALID, f"{path} is not YAML: {error}", "correct it") from error
    if not isinstance(values, dict):
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            f"{path} holds no options",
            "write one `name: value` a line, such as `lora-rank: 16`",
        )
    return values


def value_of(name: str, value: Any) -> Any:
    """Convert a value from a file or a flag to the type of its option; raises `TrainingError` if that is impossible."""
    hint = _HINTS[name]
    is_optional = type(None) in typing.get_args(hint)
    if is_optional and (value is None or (hint != str | None and value in _NO_LIMIT)):
        return None
    kind = next((part for part in typing.get_args(hint) if part is not type(None)), hint) if is_optional else hint
    if typing.get_origin(kind) is tuple:
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            # A flag takes several words, and people write commas between them, too.
            return tuple(name for part in parts for name in part.replace(",", " ").split())
        raise _invalid(name, value, "a list of names")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise _invalid(name, value, "true or false")
    return _scalar(name, value, kind)


def _scalar(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise _invalid(name, value, _KINDS[kind])
    if kind in {str, Path} and not isinstance(value, str | Path):
        raise _invalid(name, value, _KINDS[kind])
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise _invalid(name, value, _KINDS[kind]) from error


_KINDS: Final[dict[type, str]] = {int: "a whole number", float: "a number", str: "a text", Path: "a folder"}


def _invalid(name: str, value: Any, wanted: str) -> TrainingError:
    return TrainingError(
        TrainingCode.OPTION_INVALID, f"{name.replace('_', '-')} is {value!r}", f"it has to be {wanted}"
    )


_HINTS: Final[dict[str, Any]] = typing.get_type_hints(TrainingOptions)
