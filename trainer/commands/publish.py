"""`python -m trainer publish`: a PEFT folder and two evaluations in, a version on the adapter volume out.

Owns the flags and the order of the questions. What is demanded of an adapter is `trainer.publication`'s, what a volume
looks like is the contract's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.contract.identity import check_name
from shared.contract.lora_content import ContentLimits
from shared.contract.manifest import Evaluation, TrainingData
from shared.contract.publication import Announcement, Published, publish
from shared.contract.refusals import Fault, VolumeError
from shared.contract.sweeping import sweep
from shared.contract.verification import ServingPolicy
from shared.contract.volume import AdapterVolume
from trainer.commands.evaluate import DEFAULT_MODEL, UsageError
from trainer.config import TrainerSettings
from trainer.data.preparation.manifest import training_part
from trainer.evaluation.results import load_result
from trainer.publication import (
    MAX_TIER_LOSS,
    MIN_IMPROVEMENT_RATIO,
    Margins,
    base_identity,
    check_records,
    code_version,
    compare,
    module_shapes,
    require_better,
)


def add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("publish", help="put an adapter into service", description=__doc__)
    what = parser.add_argument_group("adapter")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument("--adapter", type=Path, metavar="DIR", help="PEFT folder that this trainer made")
    source.add_argument("--from", dest="imported", type=Path, metavar="DIR", help="PEFT folder made elsewhere")
    what.add_argument("--base", metavar="MODEL", help=f"base model: folder or repository ({DEFAULT_MODEL})")
    what.add_argument("--base-revision", metavar="HEX", help="commit of the repository; else the weights' SHA-256")
    what.add_argument("--data", type=Path, metavar="DIR", help="the prepared set that it was trained on")
    what.add_argument("--data-sha256", metavar="HEX", help="fingerprint of other training data")
    what.add_argument("--data-samples", type=_count, metavar="N", help="how many samples it had")
    what.add_argument("--max-rank", type=_count, default=ContentLimits().max_rank, metavar="N", help="(%(default)s)")
    proof = parser.add_argument_group("proof")
    proof.add_argument("--base-evaluation", type=Path, metavar="FILE", help="`evaluate --json` of the base model")
    proof.add_argument("--evaluation", type=Path, metavar="FILE", help="`evaluate --json` of the adapter")
    proof.add_argument(
        "--min-improvement",
        type=_ratio,
        default=MIN_IMPROVEMENT_RATIO,
        metavar="SHARE",
        help="share of the base's errors that must be gone (%(default)s)",
    )
    proof.add_argument(
        "--max-tier-loss",
        type=_ratio,
        default=MAX_TIER_LOSS,
        metavar="CER",
        help="error rate that no tier may gain more than (%(default)s)",
    )
    proof.add_argument("--force", metavar="REASON", help="publish what is not proven better; the manifest says why")
    place = parser.add_argument_group("place")
    place.add_argument("--volume", type=Path, required=True, metavar="DIR", help="the adapter volume; it exists")
    place.add_argument("--name", required=True, help="the adapter's name: a-z, 0-9 and -")
    place.add_argument("--no-activate", action="store_true", help="leave the version in use as it is")
    parser.set_defaults(run=run_publish)


def run_publish(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Carry the command out.

    Args:
        options: Its flags.

    Returns:
        What was published, for people.

    Raises:
        UsageError: Flags that make no sense together.
        DataError: What `--data` names is no prepared set.
        PublicationError: Records that do not belong together.
        AdapterRefusedError: The adapter may not be published.
        VolumeError: The volume failed.
    """
    check_name(options.name)
    _check_flags(options)
    folder = options.adapter or options.imported
    margins = Margins(options.min_improvement, options.max_tier_loss)
    records = None
    if options.evaluation is not None:
        records = load_result(options.base_evaluation), load_result(options.evaluation)
    base_model = options.base or DEFAULT_MODEL
    base = base_identity(base_model, options.base_revision, records[0] if records else None)
    evaluation = None
    if records is not None:
        check_records(folder, base, *records)
        evaluation = compare(*records, margins)
    forced = require_better(evaluation, options.force)
    announcement = Announcement(
        name=options.name,
        base=base,
        code=code_version("trainer publish" if options.adapter else "trainer publish --from"),
        evaluation=evaluation,
        training_data=_training_data(options),
        forced=forced,
    )
    policy = ServingPolicy(
        module_shapes=module_shapes(Path(base_model)) if Path(base_model).is_dir() else None,
        limits=ContentLimits(max_rank=options.max_rank),
    )
    volume = AdapterVolume(options.volume)
    _sweep(volume, options.name)
    published = publish(volume, folder, announcement, activate=not options.no_activate, policy=policy)
    return _report(published, evaluation, options.force is not None and forced is None)


def _check_flags(options: argparse.Namespace) -> None:
    if (options.evaluation is None) != (options.base_evaluation is None):
        raise UsageError("give --evaluation and --base-evaluation together")
    if (options.data_sha256 is None) != (options.data_samples is None):
        raise UsageError("give --data-sha256 and --data-samples together")
    if options.data is not None and options.data_sha256 is not None:
        raise UsageError("give --data, or --data-sha256 and --data-samples")
    if options.imported is not None and options.base is None:
        raise UsageError("an adapter made elsewhere needs --base: the model that it was trained on")
    if options.force is not None and not options.force.strip():
        raise UsageError("--force needs a reason")


def _training_data(options: argparse.Namespace) -> TrainingData | None:
    if options.data is not None:
        part = training_part(options.data)
        return TrainingData(sha256=part.fingerprint, samples=part.num_samples)
    if options.data_sha256 is None:
        return None
    try:
        return TrainingData(sha256=options.data_sha256, samples=options.data_samples)
    except ValueError as error:
        raise UsageError("--data-sha256 is not 64 hex digits") from error


def _sweep(volume: AdapterVolume, name: str) -> None:
    try:
        sweep(volume, name)
    except VolumeError as error:
        if error.fault is not Fault.UNKNOWN_ADAPTER:
            raise


def _report(published: Published, evaluation: Evaluation | None, unneeded_force: bool) -> str:
    lines = [f"published {published.reference}"]
    if evaluation is not None:
        lines.append(f"CER {evaluation.base.cer:.2%} of the base, {evaluation.adapter.cer:.2%} of the adapter")
    if published.manifest.forced is not None:
        lines.append(f"forced: {published.manifest.forced}")
    if unneeded_force:
        lines.append("--force was not needed and is not kept")
    in_use = "none" if published.in_use is None else f"{published.reference.name}@{published.in_use}"
    return "\n".join([*lines, f"in use: {in_use}"])


def _ratio(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
