"""Sets up a run: options become the adapter request, training arguments, encoders and the loop."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from shared.contract.prompts import Task, prompt_for, tasks_of
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.registry import kind_of
from trainer.backends.protocol import AdaptedModel, AdapterRequest
from trainer.config import process_rank
from trainer.training.callbacks import EarlyStop, EventLog, ProgressCallback, RunFacts
from trainer.training.checked import CheckedTrainer, RunParts, base_of
from trainer.training.checkpoints import CHECKPOINTS
from trainer.training.collator import Collator, image_arguments
from trainer.training.data import RunData
from trainer.training.dataset import ImageStore, SampleReader, TrainingSet
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.events import LOG_FILE
from trainer.training.features import GIB, CachedEncoder, FeatureCache
from trainer.training.loop import PageTrainer
from trainer.training.options import TrainingOptions
from trainer.training.output import CACHE, rank
from trainer.training.reward_options import RewardOptions
from trainer.training.start import misfit
from trainer.training.targets import choose_modules, touches_vision
from trainer.training.validation import Checker, HeldOut, longest_answer

PAGES_AT_ONCE_ON_GPU = 8
"""A page of seven views already fills a GPU; more only take memory."""
CHECKS_PER_PASS = 4
GRAPHED_MULTIPLE = 64
"""Tokens: a CUDA graph fits batches of one shape only, and padding is computed too."""
Arguments = TypeVar("Arguments", bound=TrainingArguments)
HELD_OUT_SHARE = 0.25
"""Share of the feature caches for held-out pages, which every check reads."""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """A run, ready to start."""

    trainer: CheckedTrainer
    log: EventLog
    check: Checker | None
    facts: RunFacts


def adapter_request(options: TrainingOptions, device: torch.device) -> AdapterRequest:
    """The request to the backend."""
    return AdapterRequest(
        checkpoint=options.model,
        device=device,
        choose=partial(_choose, options),
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        in_4bit=options.use_qlora,
        gradient_checkpointing=options.gradient_checkpointing,
        max_length=options.max_length,
        seed=options.seed,
    )


def _choose(options: TrainingOptions, model: torch.nn.Module) -> tuple[str, ...]:
    try:
        return choose_modules(model, options.target_modules, with_vision=options.train_vision)
    except TrainingError as error:
        if options.init_from:
            raise misfit(options.init_from) from error
        raise


def sample_reader(options: TrainingOptions, adapted: AdaptedModel, store: ImageStore) -> SampleReader:
    """What turns samples into views and tokens."""
    try:
        mode = Mode(options.mode) if options.mode else adapted.geometry.default_mode
    except ValueError as error:
        known = ", ".join(adapted.geometry.modes)
        raise TrainingError(
            TrainingCode.OPTION_INVALID, f"there is no mode {options.mode!r}", f"the checkpoint knows {known}"
        ) from error
    if mode not in adapted.geometry.modes:
        known = ", ".join(adapted.geometry.modes)
        raise TrainingError(TrainingCode.OPTION_INVALID, f"the checkpoint has no mode {mode}", f"it knows {known}")
    prompt = adapted.tokenizer.encode_trusted(_prompt_of(options, adapted))
    room = options.max_length - len(prompt) - 2
    return SampleReader(store, adapted.geometry, mode, adapted.tokenizer.encode_trusted, room)


def _prompt_of(options: TrainingOptions, adapted: AdaptedModel) -> str:
    """The task's prompt; a `TrainingError` if the model has none."""
    prompts = kind_of(adapted.model).prompts
    try:
        return prompt_for(Task(options.task), prompts=prompts)
    except ValueError as error:
        known = ", ".join(map(str, tasks_of(prompts)))
        raise TrainingError(
            TrainingCode.OPTION_INVALID, f"the model has no prompt for the task {options.task!r}", f"it knows {known}"
        ) from error


def set_up(
    options: TrainingOptions,
    adapted: AdaptedModel,
    reader: SampleReader,
    pages: RunData,
    device: torch.device,
    stack: ExitStack,
    progress: ProgressCallback | None,
    rewards: RewardOptions | None = None,
) -> TrainingSetup:
    """Set up a run: collator, feature caches, checks, log and trainer.

    `stack` closes the caches; `progress` gets every event; with `rewards` the loop learns from them.
    """
    tokenizer = adapted.tokenizer
    is_vision_trained = touches_vision(adapted.modules)
    collator = Collator(
        before=[tokenizer.bos_id],
        image_id=tokenizer.image_id,
        after=tokenizer.encode_trusted(_prompt_of(options, adapted)),
        ends=(tokenizer.eos_id, tokenizer.pad_id),
        views=reader.views if is_vision_trained else None,
        multiple=GRAPHED_MULTIPLE if options.cuda_graphs else 1,
    )
    if options.cuda_graphs and (is_vision_trained or not adapted.keeps_logits or process_rank().world_size > 1):
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            "--cuda-graphs needs one GPU, a frozen encoder, and a backend that does not replace the training step",
            "leave it out, or use --backend peft",
        )

    def encoder(name: str, samples: TrainingSet, share: float) -> CachedEncoder:
        kept = 0.0 if is_vision_trained else share
        cache = stack.enter_context(
            FeatureCache(
                options.output_dir / CACHE / f"{name}-{rank()}.bin",
                int(kept * options.feature_memory_gb * GIB),
                int(kept * options.feature_disk_gb * GIB),
            )
        )
        most = PAGES_AT_ONCE_ON_GPU if device.type == "cuda" else 1
        return CachedEncoder(cache, lambda rows: encode_samples(adapted, reader, samples, rows, device), most)

    held_out = [
        HeldOut(name, samples, encoder(name or "validation", samples, HELD_OUT_SHARE / 2))
        for name, samples in (("", pages.validation), ("forgetting", pages.forgetting))
        if len(samples)
    ]
    check = None
    if len(pages.validation):
        check = Checker(held_out, tokenizer, collator, options.max_new_tokens, 2 * options.batch_size, device)
    parts = RunParts(
        output=options.output_dir,
        base_model=adapted.base_name,
        modules=adapted.modules,
        samples=pages.train,
        collator=collator,
        encoder=None if is_vision_trained else encoder("train", pages.train, 1 - HELD_OUT_SHARE),
        check=check,
        keep_checkpoints=options.keep_checkpoints,
        keeps_logits=adapted.keeps_logits,
        is_graphed=options.cuda_graphs,
    )
    log = EventLog(options.output_dir / LOG_FILE, sys.stderr, progress, is_main=rank() == 0)
    values = argument_values(options, len(pages.train), device, has_check=check is not None)
    reports, facts = _reports(options, adapted, pages)
    callbacks = [log, *_callbacks(options, has_check=check is not None), *reports]
    trainer = (
        PageTrainer(adapted.model, parts, args=on_device(TrainingArguments(**values), device), callbacks=callbacks)
        if rewards is None
        else _policy_trainer(options, adapted, parts, rewards, values, device, callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(facts)  # after the library's own
    return TrainingSetup(trainer, log, check, facts)


def encode_samples(
    adapted: AdaptedModel, reader: SampleReader, samples: TrainingSet, rows: list[int] | Any, device: torch.device
) -> list[Tensor]:
    """Vision features of several samples, those of a sample's pages concatenated: `[L, D]` each."""
    base = base_of(adapted.model)
    pages_of = [reader.views(samples[row]) for row in rows]
    arguments = image_arguments(pages_of)
    tiles = arguments["tiles_THWC"]
    features = base.image_features(
        arguments["global_views_BHWC"].to(device),
        None if tiles is None else tiles.to(device),
        arguments["tile_grids_B2"],
    )
    rest = iter(features)
    return [torch.cat([next(rest) for _ in pages]) for pages in pages_of]


def _policy_trainer(
    options: TrainingOptions,
    adapted: AdaptedModel,
    parts: RunParts,
    rewards: RewardOptions,
    values: dict[str, Any],
    device: torch.device,
    callbacks: list[TrainerCallback],
) -> CheckedTrainer:
    """The loop that learns from rewards; raises `TrainingError` where it cannot."""
    if parts.encoder is None or options.cuda_graphs or process_rank().world_size > 1:
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            "training by rewards has one process, a frozen encoder and no recorded steps",
            "leave out --cuda-graphs, --train-vision and torchrun",
        )
    per_update = options.batch_size * options.gradient_accumulation_steps
    if len(parts.samples) < per_update:
        raise TrainingError(
            TrainingCode.NO_SAMPLES,
            f"an update takes {per_update} pages, and there are {len(parts.samples)}",
            f"lower --batch-size to {max(len(parts.samples) // options.gradient_accumulation_steps, 1)} or less",
        )
    if importlib.util.find_spec("trl") is None:
        raise TrainingError(
            TrainingCode.PACKAGE_MISSING,
            "training by rewards needs the package trl",
            "install the extra: pip install 'deepsynth-ocr[trainer-rewards]'",
        )
    from trainer.training.policy import PolicyTrainer, RewardParts, policy_arguments

    longest = max(len(sample.answer_ids) for sample in parts.samples)
    max_new_tokens = options.max_new_tokens or longest_answer(longest)
    return PolicyTrainer(
        adapted.model,
        parts,
        RewardParts(rewards, adapted.tokenizer, max_new_tokens, device),
        args=on_device(policy_arguments(values, rewards, max_new_tokens), device),
        callbacks=callbacks,
    )


def argument_values(
    options: TrainingOptions, num_samples: int, device: torch.device, *, has_check: bool
) -> dict[str, Any]:
    """Arguments of transformers' `Trainer` for `num_samples`; reporting is added by callbacks."""
    is_cuda = device.type == "cuda"
    per_update = options.batch_size * options.gradient_accumulation_steps
    per_pass = max(-(-num_samples // per_update), 1)
    eval_steps = options.eval_steps or max(per_pass // CHECKS_PER_PASS, 1)
    return dict(  # noqa: C408 - they are a call's arguments
        output_dir=str(options.output_dir / CHECKPOINTS),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        num_train_epochs=options.num_epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler,
        # Rounded down: a run of a few updates would otherwise begin, and end, with a learning rate of 0.
        warmup_steps=int(options.warmup_ratio * (options.max_steps or per_pass * options.num_epochs)),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        eval_strategy="steps" if has_check else "no",
        eval_steps=eval_steps if has_check else None,
        save_strategy="steps",
        save_steps=options.save_steps or eval_steps,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,
        metric_for_best_model="cer" if has_check else None,
        greater_is_better=False if has_check else None,
        report_to=_reporters(options),
        project=options.wandb_project,
        run_name=options.output_dir.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not is_cuda,
        bf16=is_cuda,
        optim="adamw_torch_fused" if is_cuda else "adamw_torch",
        dataloader_pin_memory=is_cuda,
        ddp_find_unused_parameters=False,
    )


def on_device(arguments: Arguments, device: torch.device) -> Arguments:
    """Arguments that use this process's device alone."""
    is_cuda = device.type == "cuda"
    # Other GPUs are for torchrun's other processes; by default the library splits each batch over all it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if not is_cuda and process_rank().world_size > 1:
        # Accelerate numbers CPUs as if they were GPUs, and torch loads no checkpoint onto "cpu:0".
        arguments.distributed_state.device = arguments._setup_devices = device
    return arguments


def _reporters(options: TrainingOptions) -> list[str]:
    if not options.use_wandb:
        return []
    if importlib.util.find_spec("wandb") is None:
        raise TrainingError(
            TrainingCode.PACKAGE_MISSING, "--use-wandb needs the package wandb", "install it with pip install wandb"
        )
    return ["wandb"]


def _callbacks(options: TrainingOptions, *, has_check: bool) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if has_check and options.early_stopping_patience:
        callbacks.append(EarlyStop(options.early_stopping_patience))
    return callbacks


def _reports(options: TrainingOptions, adapted: AdaptedModel, pages: RunData) -> tuple[list[TrainerCallback], RunFacts]:
    """TensorBoard's callback if it is installed, and what the reports say of the run."""
    facts: dict[str, Any] = {
        "data/name": Path(options.dataset_name).name or options.dataset_name,
        "data/fingerprint": pages.train.fingerprint,
        "data/train_samples": len(pages.train),
        "data/validation_samples": len(pages.validation),
        "model/base": adapted.base_name,
        "adapter/rank": options.lora_rank,
        "adapter/alpha": float(options.lora_alpha),
        "adapter/modules": len(adapted.modules),
    }
    callbacks: list[TrainerCallback] = []
    writer = None
    if options.use_tensorboard and rank() == 0 and importlib.util.find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback

        writer = SummaryWriter(str(options.output_dir / "tensorboard"))
        callbacks.append(TensorBoardCallback(writer))
    return callbacks, RunFacts(facts, writer, use_wandb=options.use_wandb)
