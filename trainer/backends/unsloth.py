"""Unsloth on CUDA: the only file that imports it. Import it before anything that imports transformers.

DeepSeek-OCR-2 is loaded by `FastVisionModel` and given our interface; DeepSeek-OCR, Unlimited-OCR and nano are our own
class, whose loading Unsloth does not know, so they use only its adapter and its checkpoints in host memory. Pages in
training are embeddings, so the vision part does not pass through it.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

from unsloth import FastVisionModel  # isort: skip - it changes what is imported after it

import torch
from safetensors import SafetensorError
from unsloth_zoo.gradient_checkpointing import unsloth_offloaded_gradient_checkpoint

from shared.deepseek_ocr.checkpoint import CheckpointError, read_config, weight_files
from shared.deepseek_ocr.loading import find_checkpoint, load_checkpoint, load_tokenizer
from shared.deepseek_ocr.registry import find_kind
from trainer.backends.peft import check_adapter, quantise, recompute_layers, stack_experts
from trainer.backends.protocol import AdaptedModel, AdapterRequest, as_pattern
from trainer.training.errors import TrainingCode, TrainingError

CHECKPOINTING = "unsloth"
"""Activations between layers are kept in host memory."""


def adapt(request: AdapterRequest) -> AdaptedModel:
    """Load a base model in bfloat16 or 4 bits and add an adapter to it.

    Raises `TrainingError` if the checkpoint cannot be used.
    """
    try:
        folder, name = find_checkpoint(request.checkpoint)
        kind = find_kind(read_config(folder).get("model_type"))
        adopter = kind.adopter if kind else None
        base, tokenizer, geometry = _load_adopted(folder, request, adopter) if adopter else _load_native(request)
    except CheckpointError as error:
        raise TrainingError(
            TrainingCode.MODEL_UNUSABLE, str(error), "name a folder or a repository with --model"
        ) from error
    modules = request.choose(base)
    model = FastVisionModel.get_peft_model(
        base,
        # Full names: by ends of names it would adapt the vision part too, by default even the routed experts.
        target_modules=as_pattern(modules),
        target_parameters=[],
        r=request.rank,
        lora_alpha=request.alpha,
        lora_dropout=request.dropout,
        use_rslora=request.use_rslora,
        bias="none",
        random_state=request.seed,
        # Only layers of transformers' own kind can be told to; it refuses a model without any.
        use_gradient_checkpointing=CHECKPOINTING if request.gradient_checkpointing and adopter else False,
    )
    FastVisionModel.for_training(model)
    check_adapter(model, modules)
    if request.gradient_checkpointing and not adopter:
        recompute_layers(base, keeps_chance=request.dropout > 0, recompute=unsloth_offloaded_gradient_checkpoint)
    return AdaptedModel(
        model=model,
        tokenizer=tokenizer,
        geometry=geometry,
        base_name=name,
        modules=modules,
        details={"backend": "unsloth", "in_4bit": request.in_4bit},
        # Its fused loss takes whole sequences and never materialises their logits.
        keeps_logits=adopter is None,
    )


def _load_adopted(folder: Path, request: AdapterRequest, adopter: str) -> tuple[Any, Any, Any]:
    weight_files(folder)
    try:
        model, _ = FastVisionModel.from_pretrained(
            str(folder),
            load_in_4bit=request.in_4bit,
            max_seq_length=request.max_length,
            use_gradient_checkpointing=CHECKPOINTING if request.gradient_checkpointing else False,
            dtype=torch.bfloat16,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    base = pkgutil.resolve_name(adopter)(model)
    return base, load_tokenizer(folder, base.config), base.geometry


def _load_native(request: AdapterRequest) -> tuple[Any, Any, Any]:
    loaded = load_checkpoint(request.checkpoint, "cpu" if request.in_4bit else request.device, torch.bfloat16)
    base: Any = loaded.model
    stack_experts(base)
    if request.in_4bit:
        quantise(base, request.device)
    base.max_seq_length = request.max_length  # where Unsloth's own loaders record it
    # They also mark models whose code is not transformers'; without it Unsloth insists on replacing the library's loop.
    base._unsloth_trust_remote_code = True
    return base, loaded.tokenizer, loaded.geometry
