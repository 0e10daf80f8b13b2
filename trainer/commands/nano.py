"""`python -m trainer nano`: the steps from Debian packages to the checkpoint in `shared/nano`, one subcommand each.

Owns only the flags; every step's module is imported when it runs, since each needs other packages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from trainer.commands.flags import positive
from trainer.config import TrainerSettings


def add_nano(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its steps."""
    parser = commands.add_parser(
        "nano", help="make nano, the small model that ships with the service", description=__doc__
    )
    steps = parser.add_subparsers(title="steps, in order", metavar="STEP", required=True)
    for name, text, run in (
        ("fonts", "pack fonts of Debian packages", _run_fonts),
        ("corpus", "pack texts of Debian packages", _run_corpus),
        ("pdfs", "pack pages of Debian's documentation in PDF, for real layouts; not needed to train", _run_pdfs),
    ):
        step = steps.add_parser(name, help=text)
        step.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="output folder for training and held-out halves"
        )
        step.add_argument("--cache", type=Path, required=True, metavar="DIR", help="where packages are unpacked")
        step.set_defaults(run=run)
    _add_evalset(steps)
    _add_tokenizer(steps)
    _add_train(steps)
    _add_export(steps)


def _add_evalset(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = steps.add_parser("evalset", help="draw the evaluation set from held-out fonts and texts")
    step.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `fonts` and `corpus` wrote")
    step.add_argument("--out", type=Path, required=True, metavar="DIR", help="replaced if it exists")
    step.add_argument("--seed", type=int, default=argparse.SUPPRESS, help="makes another set than the published one")
    step.add_argument(
        "--tiers", nargs="+", type=_tier_count, metavar="TIER=N", help="other pages than the published set has"
    )
    step.set_defaults(run=_run_evalset)


def _tier_count(text: str) -> tuple[str, int]:
    """Parse `TIER=N`."""
    from trainer.nano.pages.evaluation_set import CODE_TIER, EVALUATION_TIERS, TABLE_TIER

    tier, _, count = text.partition("=")
    tiers = (*EVALUATION_TIERS, TABLE_TIER, CODE_TIER)
    if tier not in tiers:
        raise argparse.ArgumentTypeError(f"there is no tier {tier!r}; known are {', '.join(tiers)}")
    try:
        return tier, positive(count)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not TIER=N") from error


def _add_tokenizer(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = steps.add_parser("tokenizer", help="learn nano's vocabulary")
    step.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `fonts` and `corpus` wrote")
    step.add_argument("--out", type=Path, required=True, metavar="FILE", help="tokenizer.json")
    step.set_defaults(run=_run_tokenizer)


def _add_train(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = steps.add_parser("train", help="train nano within a time budget")
    step.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `fonts` and `corpus` wrote")
    step.add_argument("--tokenizer", type=Path, required=True, metavar="FILE")
    step.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run: log and shards")
    step.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="an earlier run's shards, or a checkpoint (shared/nano), to continue from",
    )
    step.add_argument("--device", help="auto, cpu or cuda; DEEPSYNTH_TRAINER_DEVICE")
    step.add_argument(
        "--workers", type=int, default=0, help="drawing processes; 0 for one less than the number of cores"
    )
    step.add_argument("--no-compile", action="store_true", help="start at once, but run slower")
    step.add_argument(
        "--draft-alone",
        action="store_true",
        help="train the draft head of the weights to continue from, which stay as they are",
    )
    # Without a flag the recipe's own number is used, so that numbers are in one place.
    for name, kind, text in (
        ("--budget-s", float, "seconds"),
        ("--max-steps", int, "end after so many steps"),
        ("--views-per-batch", int, "640 px views of each step"),
        ("--start", float, "share of the curriculum that earlier runs covered; 1 to continue"),
        ("--begin", float, "share of the schedule behind a run that was cut short, its run.json says how much"),
        ("--learning-rate", float, "of tables, norms and biases at its highest"),
        ("--matrix-learning-rate", float, "of matrices and convolutions at its highest"),
        ("--decay-share", float, "last share of the run over which both fall to zero"),
        ("--seed", int, "of everything random"),
    ):
        step.add_argument(name, type=kind, default=argparse.SUPPRESS, help=text)
    step.set_defaults(run=_run_train)


def _add_export(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    step = steps.add_parser("export", help="write the checkpoint that ships from a run's shards")
    step.add_argument("--shards", type=Path, required=True, metavar="DIR")
    step.add_argument("--tokenizer", type=Path, required=True, metavar="FILE")
    step.add_argument("--out", type=Path, default=Path("shared/nano"), metavar="DIR", help="(%(default)s)")
    step.set_defaults(run=_run_export)


def _run_fonts(options: argparse.Namespace, _: TrainerSettings) -> str:
    from trainer.nano.fonts.pack import build_fonts

    return _counts(build_fonts(options.out, options.cache))


def _run_corpus(options: argparse.Namespace, _: TrainerSettings) -> str:
    from trainer.nano.corpus.pack import build_corpus

    return _counts(build_corpus(options.out, options.cache))


def _run_pdfs(options: argparse.Namespace, _: TrainerSettings) -> str:
    from trainer.nano.pdf.pack import build_pdfs

    return _counts(build_pdfs(options.out, options.cache))


def _run_train(options: argparse.Namespace, settings: TrainerSettings) -> str:
    from trainer.nano.training.recipe import Recipe
    from trainer.nano.training.run import DataPaths, train_nano
    from trainer.nano.training.trainer import RunPaths
    from trainer.reading.loading import choose_device

    names = [field.name for field in fields(Recipe)]
    data = DataPaths(
        fonts=options.data / "fonts",
        corpus=options.data / "corpus",
        heldout_fonts=options.data / "fonts-heldout",
        heldout_corpus=options.data / "corpus-heldout",
        tokenizer=options.tokenizer,
        **{
            name: options.data / folder
            for name, folder in (("pdfs", "pdf"), ("heldout_pdfs", "pdf-heldout"))
            if (options.data / folder).is_dir()
        },
    )
    train_nano(
        data,
        RunPaths(options.out, options.resume),
        Recipe(**{name: getattr(options, name) for name in names if hasattr(options, name)}),
        device=str(choose_device(options.device or settings.device)),
        workers=options.workers,
        compiled=not options.no_compile,
    )
    return ""


def _run_evalset(options: argparse.Namespace, _: TrainerSettings) -> str:
    from trainer.nano.pages.evaluation_set import build_evaluation_set

    seed = {"seed": options.seed} if hasattr(options, "seed") else {}
    folders = (options.data / "fonts-heldout", options.data / "corpus-heldout")
    per_tier = None if options.tiers is None else dict(options.tiers)
    return _counts(build_evaluation_set(*folders, options.out, **seed, per_tier=per_tier))


def _run_tokenizer(options: argparse.Namespace, _: TrainerSettings) -> str:
    from trainer.nano.training.run import learn_vocabulary

    options.out.parent.mkdir(parents=True, exist_ok=True)
    learn_vocabulary(options.data / "fonts", options.data / "corpus", options.out)
    return str(options.out)


def _run_export(options: argparse.Namespace, _: TrainerSettings) -> str:
    from trainer.nano.training.export import export_checkpoint

    return _counts(export_checkpoint(options.shards, options.tokenizer, options.out))


def _counts(counts: Mapping[str, int]) -> str:
    return json.dumps(dict(counts), indent=1)
