"""`adapter_config.json` as PEFT writes it: which LoRA it describes, and which of PEFT's options are supported.

The only reader of this file; the service's engine and the trainer use it too. An unknown option that is switched on is
refused: if it changed the arithmetic and were ignored, the model served would not be the one that was measured. No
pattern from outside is evaluated. Knows neither tensors nor files.

Source: `LoraConfig` of PEFT 0.18 to 0.21.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.contract.manifest import parse_object
from shared.contract.refusals import AdapterRefusedError, Reason

MAX_CONFIG_BYTES = 256 * 1024
MAX_TARGETS = 8192
MAX_PATTERN_CHARS = 4096

_FREE = frozenset({
    # These do not change a trained adapter's arithmetic (its tensors say which modules it has), or are checked below.
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
_BASE_ALTERING = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that subtract from the base model's weights: such an adapter fits no other copy of the base."""
_DROPPED = ("auto_mapping", "revision", "runtime_config")
"""Options that publishing leaves out: class names and paths of the machine that trained."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The LoRA that a config describes."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...] | None
    """Whole names of modules or their last parts; None for a pattern: the tensors then say which modules it means."""
    base_model: str | None
    values: Mapping[str, Any]
    """The file's whole content."""

    @property
    def scaling(self) -> float:
        """Factor of B times A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def parse_config(data: bytes, *, takes_parameters: bool = False) -> PeftConfig:
    """Read a config from an untrusted source.

    Args:
        data: UTF-8 JSON; the caller limits its size (`MAX_CONFIG_BYTES`).
        takes_parameters: Accept `target_parameters`. For a reader that knows stacked weights, such as those of routed
            experts, and finds the place of every tensor itself; the adapter volume's contract does not accept them.

    Returns:
        The LoRA it describes.

    Raises:
        AdapterRefusedError: `config_not_json`, `config_invalid`, `not_lora`, `dora`, `modules_to_save` or
            `unsupported_option`.
    """
    values = parse_object(data, Reason.CONFIG_NOT_JSON)
    if values.get("peft_type") != "LORA":
        raise AdapterRefusedError(Reason.NOT_LORA, "peft_type is not LORA")
    if _is_on(values.get("use_dora")):
        raise AdapterRefusedError(Reason.DORA, "use_dora is set")
    if _is_on(values.get("modules_to_save")):
        raise AdapterRefusedError(Reason.MODULES_TO_SAVE, "modules_to_save is set")
    if values.get("bias", "none") != "none":
        raise AdapterRefusedError(Reason.UNSUPPORTED_OPTION, "bias is not none")
    known = _FREE | {"target_parameters"} if takes_parameters else _FREE
    switched_on = sorted(ascii(key[:60]) for key, value in values.items() if key not in known and _is_on(value))
    if switched_on:
        raise AdapterRefusedError(Reason.UNSUPPORTED_OPTION, f"{', '.join(switched_on[:5])} switched on")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_BASE_ALTERING):
        raise AdapterRefusedError(Reason.UNSUPPORTED_OPTION, "init_lora_weights changes the base model's weights")
    rank: Any = values.get("r")
    alpha: Any = values.get("lora_alpha")
    rslora, base = values.get("use_rslora", False), values.get("base_model_name_or_path")
    if type(rank) is not int or rank < 1:
        raise AdapterRefusedError(Reason.CONFIG_INVALID, "r is not a positive whole number")
    if type(alpha) not in {int, float} or not 0 < alpha <= 10**6:
        raise AdapterRefusedError(Reason.CONFIG_INVALID, "lora_alpha is not a positive number")
    if type(rslora) is not bool or not (base is None or isinstance(base, str)):
        raise AdapterRefusedError(Reason.CONFIG_INVALID, "use_rslora or base_model_name_or_path has another type")
    return PeftConfig(rank, float(alpha), rslora, _targets(values), base, values)


def published_config(config: PeftConfig, base_model: str) -> bytes:
    """The config as it is published: PEFT's own, without what belongs to the machine that trained.

    Args:
        config: The config that training wrote.
        base_model: Public name of the base model: a repository, or a checkpoint's name.

    Returns:
        UTF-8 JSON that PEFT can load.
    """
    kept = {key: value for key, value in config.values.items() if key not in _DROPPED}
    kept |= {"base_model_name_or_path": base_model, "inference_mode": True}
    return json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def matches_target(module: str, targets: tuple[str, ...]) -> str | None:
    """The target that a module matches, by PEFT's rule for lists: its whole name, or the end of it after a dot."""
    parts = module.split(".")
    ends = {".".join(parts[place:]) for place in range(len(parts))}
    return next((target for target in targets if target in ends), None)


def _targets(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = values.get("target_modules")
    if value in (None, []) and _is_on(values.get("target_parameters")):
        return ()
    if isinstance(value, str) and 0 < len(value) <= MAX_PATTERN_CHARS:
        return None
    if isinstance(value, list) and 0 < len(value) <= MAX_TARGETS and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise AdapterRefusedError(Reason.CONFIG_INVALID, "target_modules is neither a list of names nor a pattern")


def _is_on(value: object) -> bool:
    """Whether an option is anything but null, false, zero or empty."""
    return value not in (None, False, 0, "", [], {})
