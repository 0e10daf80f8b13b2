"""`python -m trainer reinforce`: train an adapter further by rewards for what it reads (GRPO, through TRL).

Takes every flag of `train`. Each page of an update is answered several times; answers that the true text proves better
than the others of their page become more likely.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from trainer.commands.flags import positive
from trainer.commands.train import add_option_flags, chosen_options, train_and_push
from trainer.config import TrainerSettings
from trainer.rewards.rewards import REWARDS
from trainer.training.reward_options import DEFAULT_WEIGHTS, LOSSES, RewardOptions, parse_weights

DEFAULTS: Final[dict[str, Any]] = {
    "learning_rate": 5e-5,
    "lr_scheduler": "constant_with_warmup",
    "num_epochs": 1.0,
    "batch_size": 8,
    "logging_steps": 1,
}
"""Options of `train` with another default here: steps along rewards are noisier than along true texts."""


def add_reinforce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("reinforce", help="train an adapter further by rewards", description=__doc__)
    rewards = parser.add_argument_group("rewards")
    weights = " ".join(f"{name}={weight:g}" for name, weight in DEFAULT_WEIGHTS.items())
    rewards.add_argument(
        "--rewards", nargs="+", metavar="NAME=WEIGHT", help=f"of {', '.join(REWARDS)} ({weights})", default=[]
    )
    rewards.add_argument("--page-tests", type=Path, metavar="FILE", help="tests by page, as olmOCR-Bench has them")
    rewards.add_argument("--num-answers", type=positive, default=8, metavar="N", help="to each page (%(default)s)")
    rewards.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of drawing (%(default)s)")
    rewards.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="(%(default)s)")
    rewards.add_argument(
        "--kl-weight", type=float, default=0.0, metavar="W", help="of staying near the adapter it began with (0)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the folder")
    add_option_flags(parser, DEFAULTS)
    parser.set_defaults(run=run_reinforce)


def run_reinforce(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns what was trained. Raises `TrainingError`."""
    rewards = RewardOptions(
        weights=parse_weights(options.rewards) or dict(DEFAULT_WEIGHTS),
        num_answers=options.num_answers,
        temperature=options.temperature,
        loss=options.loss,
        kl_weight=options.kl_weight,
        page_tests=options.page_tests,
    )
    return train_and_push(*chosen_options(options, settings, DEFAULTS), options, settings, rewards)
