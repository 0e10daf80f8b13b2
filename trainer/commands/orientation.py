"""`python -m trainer orientation`: make the weights with which the service finds turned pages. Owns only the flags."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.config import TrainerSettings


def add_orientation(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("orientation", help="train what finds turned pages", description=__doc__)
    parser.add_argument(
        "--fonts", type=Path, action="append", required=True, metavar="DIR", help="folder of fonts; may be repeated"
    )
    parser.add_argument(
        "--texts", type=Path, action="append", required=True, metavar="DIR", help="folder of UTF-8 files *.txt"
    )
    parser.add_argument("--pages", type=int, default=700, help="pages to draw; 80 windows are cut from each at most")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="shared/images/orientation.npz")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, _: TrainerSettings) -> str:
    # PyTorch takes seconds to import.
    from trainer.orientation import OrientationRecipe, train

    recipe = OrientationRecipe(tuple(options.fonts), tuple(options.texts), options.pages, options.epochs, options.seed)
    return json.dumps(train(recipe, options.out))
