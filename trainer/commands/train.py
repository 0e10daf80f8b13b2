"""`python -m trainer train`: train an adapter.

Its flags are the fields of `TrainingOptions`. Chooses device and backend; `trainer.training.run` trains.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TrainerSettings, process_rank
from trainer.publishing.hub import HubRepository, open_repository, push_folder
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import TrainingOptions, load_file, make_options, option_fields
from trainer.training.presets import PRESETS, preset_values
from trainer.training.start import SHAPING, shaping_options

if TYPE_CHECKING:
    from trainer.backends.protocol import Backend
    from trainer.training.reward_options import RewardOptions

BEST = "best"
_GROUPS = {
    "dataset_name": "what and where",
    "image_column": "data",
    "batch_size": "course of training",
    "lora_rank": "adapter",
    "feature_memory_gb": "cached vision features",
    "eval_steps": "checks and checkpoints",
    "use_tensorboard": "reports",
}
"""First option of each group of flags."""


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("train", help="train an adapter on a set of pages", description=__doc__)
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the folder")
    add_option_flags(parser)
    parser.set_defaults(run=run_train)


def add_option_flags(parser: argparse.ArgumentParser, defaults: Mapping[str, Any] | None = None) -> None:
    """Add a flag for every option of a run, and for the file and the preset that they may come from.

    `defaults` are those of a command where they differ, for the help.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the options below; flags override it")
    goals = "; ".join(f"{name}: {preset.goal}" for name, preset in PRESETS.items())
    parser.add_argument("--preset", choices=PRESETS, help=goals)
    group: Any = parser
    for name, entry in option_fields().items():
        if name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[name])
        shown = _shown((defaults or {}).get(name, entry.default))
        arguments: dict[str, Any] = {
            "help": f"{entry.metadata['help']}{f' ({shown})' if shown else ''}".replace("%", "%%")
        }
        if isinstance(entry.default, bool):
            arguments["action"] = argparse.BooleanOptionalAction
        elif isinstance(entry.default, tuple):
            arguments |= {"nargs": "+", "metavar": "NAME"}
        else:
            arguments["metavar"] = "|".join(entry.metadata["choices"] or ()) or "VALUE"
        group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **arguments)


def run_train(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns what was trained. Raises `TrainingError`."""
    return train_and_push(*chosen_options(options, settings), options, settings)


def train_and_push(
    chosen: TrainingOptions,
    device: str,
    options: argparse.Namespace,
    settings: TrainerSettings,
    rewards: RewardOptions | None = None,
) -> str:
    """Train, by rewards if there are any, and upload the adapter where that was asked for.

    Args:
        chosen: the run's options.
        device: name of the device.
        options: the command's flags, with `resume` and `overwrite`.
        settings: of the machine.
        rewards: what answers are rewarded for.

    Returns:
        What was trained; of several processes the first alone says and uploads something.
    """
    # Fail on a missing token before hours of training.
    repository = open_repository(chosen.hub_model_id) if chosen.push_to_hub and chosen.hub_model_id else None
    trained = run_options(chosen, device, settings, resume=options.resume, overwrite=options.overwrite, rewards=rewards)
    if process_rank().rank:
        return ""
    if repository is None:
        return str(trained)
    return f"{trained}\n{push_adapter(repository, chosen.output_dir / BEST)}"


def chosen_options(
    options: argparse.Namespace, settings: TrainerSettings, defaults: Mapping[str, Any] | None = None
) -> tuple[TrainingOptions, str]:
    """The options of a run and its device; raises `TrainingError`.

    Flags win over the file, the file over the adapter to begin with, that over the preset, and all over `defaults`.
    """
    given = {name: value for name, value in vars(options).items() if name in option_fields()}
    written = load_file(options.config) if options.config else {}
    written_preset = written.pop("preset", None)
    preset = options.preset or written_preset
    wanted = make_options(written, given)
    # Presets depend on the device, and the device on the other options.
    device, has_gpu = choose_device(wanted.device if wanted.device != "auto" else settings.device)
    layers = [defaults or {}, preset_values(preset, has_gpu=has_gpu) if preset else {}]
    if wanted.init_from:
        explicit = {name.replace("-", "_") for name in (*written, *given)}
        layers.append(
            shaping_options(wanted.init_from, {name: getattr(wanted, name) for name in SHAPING if name in explicit})
        )
    chosen = make_options(*layers, written, given)
    if not chosen.dataset_name:
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            "there is nothing to train on",
            "name a prepared set or a source with --dataset-name",
        )
    if chosen.cuda_graphs and not has_gpu:
        raise TrainingError(
            TrainingCode.GPU_MISSING, "CUDA graphs need a CUDA device", "leave --cuda-graphs out, or use a GPU"
        )
    return chosen, device


def push_adapter(repository: HubRepository, folder: Path) -> str:
    """Upload PEFT's two files of a trained adapter; `publish --push-to-hub` adds a manifest and a full card.

    A repository that does not exist is created as a private one.
    """
    card = f"# {repository.repo_id}\n\nA LoRA adapter of a training run of DeepSynth OCR; not published yet.\n"
    return push_folder(repository, folder, card, "Add the adapter of a training run", private=True)


def run_options(
    options: TrainingOptions,
    device: str,
    settings: TrainerSettings,
    *,
    resume: bool,
    overwrite: bool,
    rewards: RewardOptions | None = None,
) -> object:
    """Train on a device by its name, by rewards if there are any; returns the run's summary."""
    # Must come first: unsloth patches what is imported after it.
    backend = choose_backend(options, device)
    import torch
    import transformers

    from trainer.training.run import train

    transformers.logging.set_verbosity_error()
    process = process_rank()
    if device == "cpu":
        torch.set_num_threads(settings.num_threads)
    elif process.world_size > 1:
        device = f"cuda:{process.local_rank}"
        torch.cuda.set_device(process.local_rank)
    elif torch.device(device).index:
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            f"device is {device!r}; training uses the first visible GPU",
            f"set CUDA_VISIBLE_DEVICES={torch.device(device).index} and leave --device out",
        )
    if process.world_size > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")  # connects the processes that torchrun has started
    return train(options, backend, torch.device(device), resume=resume, overwrite=overwrite, rewards=rewards)


def choose_device(name: str) -> tuple[str, bool]:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N` to a device, and whether it is a GPU; `TrainingError` without CUDA."""
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name.startswith("cuda") and not has_cuda:
        raise TrainingError(
            TrainingCode.GPU_MISSING,
            "there is no CUDA device here",
            "use a machine with a GPU (in a container: --gpus all), or --device cpu with nano",
        )
    return name, name.startswith("cuda")


def choose_backend(options: TrainingOptions, device: str) -> Backend:
    """Choose the backend; raises `TrainingError` if Unsloth is requested and cannot work here."""
    wants_unsloth = options.backend == "unsloth"
    if wants_unsloth and not device.startswith("cuda"):
        raise TrainingError(
            TrainingCode.GPU_MISSING, "Unsloth only works on CUDA devices", "use --backend peft, which works anywhere"
        )
    # Unsloth replaces the training step, which cannot be recorded then.
    wants_plain = options.backend == "peft" or (options.backend == "auto" and options.cuda_graphs)
    if wants_plain or not device.startswith("cuda"):
        from trainer.backends.peft import adapt

        return adapt
    from trainer.backends.select import unsloth_backend

    return unsloth_backend(options.model, required=wants_unsloth)


def _shown(default: Any) -> str:
    if default is None or default == "":
        return ""
    return " ".join(default) if isinstance(default, tuple) else str(default)
