"""`adapter_config.json` as PEFT writes it: which LoRA it describes, and which of PEFT's options are taken.

What is not understood is refused where it is switched on: an option that changes the arithmetic and is ignored would
serve another model than the one that was measured. Evaluates no pattern from outside. Knows neither tensors nor files.

Source: `LoraConfig` of PEFT 0.18 to 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.contract.manifest import parse_object
from shared.contract.refusals import AdapterRefusedError, Reason

MAX_CONFIG_BYTES = 256 * 1024
MAX_TARGETS = 8192
MAX_PATTERN_CHARS = 4096

_FREE = frozenset({
    # No part in the arithmetic of a trained adapter (its tensors say which modules it has), or checked by name below.
    "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
BASE_ALTERING = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Ways to initialise that subtract from the base model's weights: such an adapter fits no other copy of the base."""
_DROPPED = ("auto_mapping", "revision", "runtime_config")
"""What publishing leaves out: names of classes and places on the machine that trained."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The LoRA that a config describes."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...] | None
    """Names or ends of names of modules; None where PEFT is given a pattern, which the tensors then stand for."""
    base_model: str | None
    values: Mapping[str, Any]
    """Everything that was read."""


def parse_config(data: bytes) -> PeftConfig:
    """Read a config that anybody may have written.

    Args:
        data: The file's bytes.

    Returns:
        What it describes.

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
    switched_on = sorted(ascii(key[:60]) for key, value in values.items() if key not in _FREE and _is_on(value))
    if switched_on:
        raise AdapterRefusedError(Reason.UNSUPPORTED_OPTION, f"{', '.join(switched_on[:5])} switched on")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(BASE_ALTERING):
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
    return PeftConfig(rank, float(alpha), rslora, _targets(values.get("target_modules")), base, values)


def published_config(config: PeftConfig, base_model: str) -> bytes:
    """The file that is published for a config: PEFT's own, without what belongs to the machine that trained.

    Args:
        config: What training wrote.
        base_model: The base model's public name.

    Returns:
        The file's bytes; PEFT loads them as it loads its own.
    """
    kept = {key: value for key, value in config.values.items() if key not in _DROPPED}
    kept |= {"base_model_name_or_path": base_model, "inference_mode": True}
    return json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def matches_target(module: str, targets: tuple[str, ...]) -> str | None:
    """The target that a module belongs to, by PEFT's rule for lists: its whole name, or the end after a dot."""
    parts = module.split(".")
    ends = {".".join(parts[place:]) for place in range(len(parts))}
    return next((target for target in targets if target in ends), None)


def _targets(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and 0 < len(value) <= MAX_PATTERN_CHARS:
        return None
    if isinstance(value, list) and 0 < len(value) <= MAX_TARGETS and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise AdapterRefusedError(Reason.CONFIG_INVALID, "target_modules is neither a list of names nor a pattern")


def _is_on(value: object) -> bool:
    """Whether an option is more than absent, false or empty."""
    return value not in (None, False, 0, "", [], {})
