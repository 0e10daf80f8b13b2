"""Plain PEFT: any device, any of the models. In 4 bits on CUDA, through bitsandbytes.

Adds an adapter to a plain checkpoint. Knows neither data nor the training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from shared.deepseek_ocr.checkpoint import CheckpointError
from shared.deepseek_ocr.loading import load_checkpoint
from trainer.backends.protocol import AdaptedModel, AdapterRequest
from trainer.training.adapter import ADAPTER
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.targets import DECODERS, is_vision

PREFIX = "base_model.model."
"""PEFT's name for the base model inside."""
_KEPT_WHOLE = ("lm_head",)
"""Never quantised: it decides every token."""
_torch_checkpoint = partial(checkpoint, use_reentrant=False)


def adapt(request: AdapterRequest) -> AdaptedModel:
    """Load a base model, float32 on a CPU and bfloat16 on a GPU, and add an adapter to it.

    Raises `TrainingError` if the checkpoint cannot be used, or if 4 bits are requested where they are not supported.
    """
    is_cuda = request.device.type == "cuda"
    if request.in_4bit and not is_cuda:
        raise TrainingError(
            TrainingCode.GPU_MISSING,
            "--use-qlora keeps weights in 4 bits, which only CUDA devices compute with",
            "leave it out on a CPU, or use a machine with a GPU",
        )
    try:
        loaded = load_checkpoint(
            request.checkpoint,
            "cpu" if request.in_4bit else request.device,
            torch.bfloat16 if is_cuda else torch.float32,
        )
    except CheckpointError as error:
        raise TrainingError(
            TrainingCode.MODEL_UNUSABLE, str(error), "name a folder or a repository with --model"
        ) from error
    base: Any = loaded.model
    if is_cuda:
        stack_experts(base)
    if request.in_4bit:
        quantise(base, request.device)
    modules = request.choose(base)
    model = add_adapter(base, modules, request)
    if request.gradient_checkpointing:
        recompute_layers(base, keeps_chance=request.dropout > 0)
    return AdaptedModel(
        model=model,
        tokenizer=loaded.tokenizer,
        geometry=loaded.geometry,
        base_name=loaded.model_id,
        modules=modules,
        details={"backend": "peft", "in_4bit": request.in_4bit},
    )


def add_adapter(base: Any, modules: tuple[str, ...], request: AdapterRequest) -> PeftModel:
    """Add a new adapter to the modules of these full names; everything else is frozen."""
    config = LoraConfig(
        r=request.rank,
        lora_alpha=request.alpha,  # type: ignore[arg-type] # a float is divided all the same
        lora_dropout=request.dropout,
        use_rslora=request.use_rslora,
        target_modules=list(modules),
        bias="none",
    )
    with torch.random.fork_rng(devices=[request.device] if request.device.type == "cuda" else []):
        torch.manual_seed(request.seed)
        model = get_peft_model(base, config)
    check_adapter(model, modules)
    return model


def check_adapter(model: nn.Module, modules: tuple[str, ...]) -> None:
    """Raise `TrainingError` unless exactly the modules of these full names have an adapter."""
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    wanted = {f"{PREFIX}{name}.lora_{side}.{ADAPTER}.weight" for name in modules for side in "AB"}
    if trained != wanted:
        odd = sorted(trained ^ wanted)
        raise TrainingError(
            TrainingCode.TARGET_UNMATCHED,
            f"{len(odd)} tensors are trained that should not be, or the reverse, first {odd[0]}",
            "use --backend peft, and report this as a bug",
        )


def recompute_layers(base: nn.Module, *, keeps_chance: bool, recompute: Callable[..., Any] = _torch_checkpoint) -> None:
    """Do not keep activations inside the decoder's layers; recompute them in the backward pass.

    Args:
        base: the model.
        keeps_chance: whether layers have dropout, so that the second pass must drop the same values.
        recompute: calls a layer so; takes its forward, `preserve_rng_state` and the layer's arguments.
    """
    again = partial(recompute, preserve_rng_state=keeps_chance)
    for name, module in base.named_modules():
        is_layer = name.startswith(DECODERS) and name.rsplit(".", 1)[-1].isdigit() and name.count(".") <= 3
        if is_layer:
            module.forward = partial(_recomputed, module, module.forward, again)


def stack_experts(base: Any) -> None:
    """Compute all experts of a layer of our own class in one kernel, as transformers' class does."""
    if hasattr(base, "set_moe_implementation"):
        base.set_moe_implementation("stacked")


def quantise(base: nn.Module, device: torch.device) -> None:
    """Turn the decoder's frozen linear modules into 4-bit ones while the model moves from the CPU to a CUDA device.

    Routed experts are left as they are: they are stacked tensors, which bitsandbytes does not support. So is the vision
    part, as Unsloth leaves it: a service encodes in full, and an adapter must learn from what it will be given.
    Raises `TrainingError` if bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise TrainingError(
            TrainingCode.PACKAGE_MISSING, "4 bits need bitsandbytes", "install the extra trainer-cuda"
        ) from error
    linear = [(name, module) for name, module in base.named_modules() if type(module) is nn.Linear]
    for name, module in linear:
        if name.rsplit(".", 1)[-1] in _KEPT_WHOLE or is_vision(name):
            continue
        small = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        small.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
        small.bias = module.bias
        base.set_submodule(name, small)
    base.to(device)


def _recomputed(
    module: nn.Module, forward: Callable[..., Any], again: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return again(forward, *args, **kwargs)
