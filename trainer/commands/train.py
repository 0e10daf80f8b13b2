"""`python -m trainer train`: options in, an adapter out.

Owns the flags, which are the fields of `TrainingOptions`, and the choice of device and backend. The run itself is
`trainer.training.run`'s.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TrainerSettings, process_rank
from trainer.publishing.hub import HubRepository, open_repository, push_folder
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import TrainingOptions, load_file, make_options, option_fields
from trainer.training.presets import PRESETS, preset_values

if TYPE_CHECKING:
    from trainer.backends.protocol import Backend

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
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the options below; flags go before it")
    goals = "; ".join(f"{name}: {preset.goal}" for name, preset in PRESETS.items())
    parser.add_argument("--preset", choices=PRESETS, help=goals)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="throw away the run that is in the folder")
    group: Any = parser
    for name, entry in option_fields().items():
        if name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[name])
        shown = _shown(entry.default)
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
    parser.set_defaults(run=run_train)


def run_train(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Carry the command out.

    Args:
        options: Its flags.
        settings: The machine's settings.

    Returns:
        What was trained.

    Raises:
        TrainingError: An option makes no sense, or the run cannot go on.
    """
    given = {name: value for name, value in vars(options).items() if name in option_fields()}
    written = load_file(options.config) if options.config else {}
    written_preset = written.pop("preset", None)
    preset = options.preset or written_preset
    wanted = make_options(written, given)
    # The preset is judged by the device, the device by the rest of the options.
    device, has_gpu = choose_device(wanted.device if wanted.device != "auto" else settings.device)
    chosen = make_options(preset_values(preset, has_gpu=has_gpu) if preset else {}, written, given)
    if not chosen.dataset_name:
        raise TrainingError(
            TrainingCode.OPTION_INVALID, "there is nothing to train on", "name a set or a source with --dataset-name"
        )
    # A token that is missing should be known before hours of training.
    repository = open_repository(chosen.hub_model_id) if chosen.push_to_hub and chosen.hub_model_id else None
    summary = str(run_options(chosen, device, settings, resume=options.resume, overwrite=options.overwrite))
    if repository is None:
        return summary
    return f"{summary}\n{push_adapter(repository, chosen.output_dir / BEST)}"


def push_adapter(repository: HubRepository, folder: Path) -> str:
    """Upload a trained adapter as it is: what `publish --push-to-hub` uploads has a manifest and a card beside it.

    Args:
        repository: where to; made, private, if it is not there.
        folder: PEFT's two files.

    Returns:
        Where it is.
    """
    card = f"# {repository.repo_id}\n\nA LoRA adapter of a training run of DeepSynth OCR; not published yet.\n"
    return push_folder(repository, folder, card, "Add the adapter of a training run", private=True)


def run_options(
    options: TrainingOptions, device: str, settings: TrainerSettings, *, resume: bool, overwrite: bool
) -> object:
    """Train.

    Args:
        options: of the run.
        device: its name.
        settings: The machine's settings.
        resume: go on with a run.
        overwrite: throw an earlier run away.

    Returns:
        The run's summary.
    """
    # First of all: unsloth changes what is imported after it.
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
            f"device is {device!r}; training takes the first GPU that it sees",
            f"set CUDA_VISIBLE_DEVICES={torch.device(device).index} and leave --device out",
        )
    if process.world_size > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")  # connects the processes that torchrun has started
    return train(options, backend, torch.device(device), resume=resume, overwrite=overwrite)


def choose_device(name: str) -> tuple[str, bool]:
    """Settle the device.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The device, and whether it is a GPU.

    Raises:
        TrainingError: CUDA is asked for and is not there.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name.startswith("cuda") and not has_cuda:
        raise TrainingError(
            TrainingCode.GPU_MISSING,
            "there is no CUDA device here",
            "run on a machine with a GPU (in a container: with --gpus all), or take --device cpu with nano",
        )
    return name, name.startswith("cuda")


def choose_backend(options: TrainingOptions, device: str) -> Backend:
    """Settle what adds the adapter.

    Args:
        options: of the run.
        device: its name.

    Returns:
        The backend.

    Raises:
        TrainingError: Unsloth is asked for where it cannot work.
    """
    wants_unsloth = options.backend == "unsloth"
    if wants_unsloth and not device.startswith("cuda"):
        raise TrainingError(
            TrainingCode.GPU_MISSING, "Unsloth works on CUDA devices alone", "take --backend peft, which works anywhere"
        )
    if options.backend == "peft" or not device.startswith("cuda"):
        from trainer.backends.peft import adapt

        return adapt
    from trainer.backends.select import unsloth_backend

    return unsloth_backend(required=wants_unsloth)


def _shown(default: Any) -> str:
    if default is None or default == "":
        return ""
    return " ".join(default) if isinstance(default, tuple) else str(default)
