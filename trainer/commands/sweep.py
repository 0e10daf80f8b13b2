"""`python -m trainer sweep`: train with several values of a few options, and find those that read best.

Every flag of `train` is taken and stays the same in all trials; `--search` names what varies. Optuna (extra
`trainer-sweep`) chooses the values. Trials are compared by their error rate on the held-out pages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainer.commands.flags import positive
from trainer.commands.report import REPORT_NAME
from trainer.commands.train import add_option_flags, chosen_options
from trainer.config import TrainerSettings, child_environment
from trainer.report.sweep import sweep_page
from trainer.training.errors import TrainingCode, TrainingError

DEFAULT_TRIALS = 20


def add_sweep(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("sweep", help="find the options that train best", description=__doc__)
    search = parser.add_argument_group("sweep")
    search.add_argument(
        "--search",
        action="append",
        required=True,
        metavar="NAME=VALUES",
        help="an option to vary: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C; may be repeated",
    )
    search.add_argument("--out", type=Path, required=True, metavar="DIR", help="the sweep's folder")
    search.add_argument("--trials", type=positive, default=DEFAULT_TRIALS, metavar="N", help="at most (%(default)s)")
    search.add_argument("--hours", type=float, metavar="H", help="of training, of all trials together; default: any")
    search.add_argument("--jobs", type=positive, default=1, metavar="N", help="trials at once, each on its own GPU (1)")
    search.add_argument("--resume", action="store_true", help="continue the sweep in the folder")
    add_option_flags(parser)
    parser.set_defaults(run=run_sweep)


def run_sweep(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns the best trial. Raises `TrainingError`."""
    from trainer.sweeping.space import parse_space
    from trainer.sweeping.study import TRIALS, Budget, Sweep, best_trial

    if options.hours is not None and not options.hours > 0:
        raise TrainingError(TrainingCode.OPTION_INVALID, f"hours is {options.hours}", "it has to be a positive number")
    space = parse_space(options.search)
    fixed, device = chosen_options(options, settings)
    if fixed.push_to_hub:
        raise TrainingError(
            TrainingCode.OPTION_INVALID,
            "push-to-hub is given; every trial would upload its adapter",
            "export the best one afterwards and push that: trainer export, trainer push",
        )
    seconds = None if options.hours is None else 3600 * options.hours
    budget = Budget(options.trials, seconds, devices_of(options.jobs, device))
    record = Sweep(options.out, fixed, space, budget, sys.stderr).run(resume=options.resume)
    report = options.out / REPORT_NAME
    report.write_text(sweep_page(record, options.out.resolve().name), encoding="utf-8")
    best = best_trial(record["trials"])
    if best is None:
        return f"no trial was trained to its end; see {report}"
    return f"{_said(options.out / TRIALS, best)}\nwrote {report}"


def _said(trials: Path, best: Any) -> str:
    values = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in best["values"].items())
    folder = trials / format(best["number"], "04d")
    return f"best: trial {best['number'] + 1} in {folder}: CER {best['cer']:.2%} with {values}"


def devices_of(jobs: int, device: str) -> tuple[str | None, ...]:
    """CUDA_VISIBLE_DEVICES of each job; None leaves it.

    Raises `TrainingError` for more jobs than GPUs.
    """
    if jobs == 1:
        return (None,)
    if not device.startswith("cuda"):
        return (None,) * jobs
    import torch

    visible = [word for word in child_environment().get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    names = visible or [str(number) for number in range(torch.cuda.device_count())]
    if jobs > len(names):
        raise TrainingError(
            TrainingCode.GPU_MISSING, f"{jobs} jobs need as many GPUs; there are {len(names)}", "lower --jobs"
        )
    return tuple(names[:jobs])
