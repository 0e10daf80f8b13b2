"""Builders for adapters: PEFT folders written without torch, evaluations, announcements, a filled volume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared.contract.manifest import (
    BaseIdentity,
    CodeVersion,
    EvaluatedSet,
    Evaluation,
    Metrics,
    TierMetrics,
    TrainingData,
)
from shared.contract.publication import Announcement
from shared.contract.refusals import Reason
from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE

BASE = BaseIdentity(model_id="nano", revision="ab" * 32)
MODULES = {"model.layers.0.self_attn.q_proj": (12, 8), "model.layers.0.self_attn.v_proj": (6, 8)}
"""Outputs and inputs by name."""
NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def lora_tensors(rank: int = 4, seed: int = 0, modules: Mapping[str, tuple[int, int]] = MODULES) -> dict[str, Any]:
    """Matrices of a trained LoRA, float32, by PEFT's names."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (outputs, inputs) in modules.items():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = random.normal(size=(rank, inputs)).astype("<f4")
        tensors[f"{prefix}.lora_B.weight"] = random.normal(size=(outputs, rank)).astype("<f4")
    return tensors


def safetensors_bytes(tensors: Mapping[str, Any], dtype: str = "F32") -> bytes:
    """A file in the format of safetensors; bfloat16 by cutting float32 short."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        if dtype == "BF16":
            data = (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            data = np.ascontiguousarray(values, NUMPY_DTYPES.get(dtype, "<f4")).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    return with_header(header, body)


def with_header(header: object, body: bytes = b"") -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def peft_config(rank: int = 4, **changes: object) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 writes it, some keys left out."""
    return {
        "alpha_pattern": {},
        "auto_mapping": {"base_model_class": "SomeModel", "parent_library": "some.module"},
        "base_model_name_or_path": "some/folder",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "target_modules": ["q_proj", "v_proj"],
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    } | changes


def _config_bytes(**changes: object) -> bytes:
    return json.dumps(peft_config(**changes)).encode()


REFUSED_CONFIGS: dict[str, tuple[bytes, Reason]] = {
    "cut": (_config_bytes()[:-1], Reason.CONFIG_NOT_JSON),
    "a list": (b"[]", Reason.CONFIG_NOT_JSON),
    "a key twice": (_config_bytes()[:-1] + b', "r": 4}', Reason.CONFIG_NOT_JSON),
    "not a number": (_config_bytes(lora_alpha=float("nan")), Reason.CONFIG_NOT_JSON),
    "another kind": (_config_bytes(peft_type="LOHA"), Reason.NOT_LORA),
    "no kind": (_config_bytes(peft_type=None), Reason.NOT_LORA),
    "DoRA": (_config_bytes(use_dora=True), Reason.DORA),
    "whole modules": (_config_bytes(modules_to_save=["lm_head"]), Reason.MODULES_TO_SAVE),
    "biases": (_config_bytes(bias="all"), Reason.UNSUPPORTED_OPTION),
    "ranks by pattern": (_config_bytes(rank_pattern={"q_proj": 8}), Reason.UNSUPPORTED_OPTION),
    "alphas by pattern": (_config_bytes(alpha_pattern={"q_proj": 8}), Reason.UNSUPPORTED_OPTION),
    "layers twice": (_config_bytes(layer_replication=[[0, 2]]), Reason.UNSUPPORTED_OPTION),
    "tokens": (_config_bytes(trainable_token_indices=[1]), Reason.UNSUPPORTED_OPTION),
    "bias of B": (_config_bytes(lora_bias=True), Reason.UNSUPPORTED_OPTION),
    "transposed weights": (_config_bytes(fan_in_fan_out=True), Reason.UNSUPPORTED_OPTION),
    "QALoRA": (_config_bytes(use_qalora=True), Reason.UNSUPPORTED_OPTION),
    "aLoRA": (_config_bytes(alora_invocation_tokens=[1, 2]), Reason.UNSUPPORTED_OPTION),
    "an option of the future": (_config_bytes(use_xlora=True), Reason.UNSUPPORTED_OPTION),
    "PiSSA": (_config_bytes(init_lora_weights="pissa_niter_4"), Reason.UNSUPPORTED_OPTION),
    "OLoRA": (_config_bytes(init_lora_weights="olora"), Reason.UNSUPPORTED_OPTION),
    "no rank": (_config_bytes(r=None), Reason.CONFIG_INVALID),
    "a rank in letters": (_config_bytes(r="4"), Reason.CONFIG_INVALID),
    "a rank of zero": (_config_bytes(r=0), Reason.CONFIG_INVALID),
    "no alpha": (_config_bytes(lora_alpha=None), Reason.CONFIG_INVALID),
    "an alpha of zero": (_config_bytes(lora_alpha=0), Reason.CONFIG_INVALID),
    "a negative alpha": (_config_bytes(lora_alpha=-8), Reason.CONFIG_INVALID),
    "a huge alpha": (_config_bytes(lora_alpha=1e7), Reason.CONFIG_INVALID),
    "rsLoRA in letters": (_config_bytes(use_rslora="yes"), Reason.CONFIG_INVALID),
    "a base of numbers": (_config_bytes(base_model_name_or_path=7), Reason.CONFIG_INVALID),
    "no targets": (_config_bytes(target_modules=None), Reason.CONFIG_INVALID),
    "an empty list of targets": (_config_bytes(target_modules=[]), Reason.CONFIG_INVALID),
    "targets of numbers": (_config_bytes(target_modules=[1]), Reason.CONFIG_INVALID),
}
"""Configs that no reader takes, and why. `target_parameters` is not among them, as the engine takes it."""


def write_peft(
    folder: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    dtype: str = "F32",
    tensors: Mapping[str, Any] | None = None,
    **config: object,
) -> Path:
    """A PEFT folder as training leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(peft_config(rank, **config)))
    (folder / WEIGHTS_FILE).write_bytes(
        safetensors_bytes(lora_tensors(rank, seed) if tensors is None else tensors, dtype)
    )
    (folder / "README.md").write_text("a card that PEFT writes")
    return folder


def metrics(cer: float) -> Metrics:
    """Figures of a reader on one tier."""
    tier = TierMetrics(
        pages=10, characters=1000, cer=cer, cer_capped=min(cer, 1.0), wer=cer, exact_ratio=0.1, unfinished_ratio=0.0
    )
    return Metrics(cer=cer, tiers={"line": tier})


def evaluation(base_cer: float = 0.5, adapter_cer: float = 0.1) -> Evaluation:
    """Base and adapter on the same ten pages."""
    return Evaluation(
        sets=(EvaluatedSet(name="held-out", pages=10, sha256="cd" * 32),),
        normalisation="NFC",
        min_improvement_ratio=0.05,
        max_tier_loss=0.01,
        base=metrics(base_cer),
        adapter=metrics(adapter_cer),
    )


def announcement(name: str = "invoices", **changes: object) -> Announcement:
    """What a publisher says of a good adapter."""
    given: dict[str, Any] = {
        "name": name,
        "base": BASE,
        "code": CodeVersion(program="tests", version="1", commit="unknown"),
        "evaluation": evaluation(),
        "training_data": TrainingData(sha256="ef" * 32, samples=100),
    }
    return Announcement(**(given | changes))
