"""`python -m trainer publish`: publish a PEFT adapter to the adapter volume, if its evaluation beats the base model's.

Owns the flags and the order of the checks. `trainer.publishing.gate` decides whether an adapter is good enough,
`shared.contract` what a volume looks like.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from shared.contract.identity import check_name
from shared.contract.leftovers import sweep
from shared.contract.lora_content import ContentLimits
from shared.contract.manifest import Evaluation, TrainingData
from shared.contract.publication import Announcement, Published, publish
from shared.contract.refusals import Fault, VolumeError
from shared.contract.shipped import local_model
from shared.contract.verification import ServingPolicy
from shared.contract.volume import AdapterVolume
from trainer.commands.flags import (
    DEFAULT_MODEL,
    UsageError,
    add_page_flags,
    add_reading_flags,
    page_sets,
    positive,
    ratio,
    reading_options,
    require_writable,
)
from trainer.commands.push import add_hub_flags, hub_repository, push_version
from trainer.config import TrainerSettings
from trainer.data.prepare.manifest import training_part
from trainer.evaluation.card import RECORD_NAME
from trainer.evaluation.paths import AdapterLocation, locate_adapter, run_folder
from trainer.evaluation.results import EvaluationResult, load_result, to_json
from trainer.evaluation.run import evaluate
from trainer.evaluation.seen import SeenPages
from trainer.publishing.gate import (
    MAX_TIER_LOSS,
    MIN_IMPROVEMENT_RATIO,
    MIN_PAGES,
    Margins,
    base_identity,
    check_records,
    code_version,
    compare,
    measurements,
    model_of_run,
    module_shapes,
    require_better,
    training_data_of_run,
)
from trainer.tracing import span


def add_publish(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("publish", help="put an adapter into service", description=__doc__)
    what = parser.add_argument_group("adapter")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument("--adapter", type=Path, metavar="DIR", help="training run, or PEFT folder that it made")
    source.add_argument("--from", dest="imported", type=Path, metavar="DIR", help="PEFT folder trained elsewhere")
    what.add_argument(
        "--base", metavar="MODEL", help=f"base model: folder or repository; default: the run's, else {DEFAULT_MODEL}"
    )
    what.add_argument(
        "--base-revision",
        metavar="HEX",
        help="commit of the repository; default: the one downloaded, of a folder the weights' SHA-256",
    )
    what.add_argument("--trained-on", type=Path, metavar="DIR", help="the prepared set; else what the run says")
    what.add_argument("--trained-on-sha256", metavar="HEX", help="fingerprint of other training data")
    what.add_argument("--trained-on-samples", type=positive, metavar="N", help="its number of samples")
    what.add_argument("--max-rank", type=positive, default=ContentLimits().max_rank, metavar="N", help="(%(default)s)")
    proof = parser.add_argument_group("proof: a record, or pages to measure on (--data, --real)")
    proof.add_argument(
        "--evaluation", type=Path, metavar="FILE", help=f"`evaluate --adapter --json`; else the run's {RECORD_NAME}"
    )
    proof.add_argument(
        "--base-evaluation", type=Path, metavar="FILE", help="of the base model, if it has its own record"
    )
    proof.add_argument("--json", type=Path, metavar="FILE", help="write the record of this measurement")
    proof.add_argument(
        "--min-improvement",
        type=ratio,
        default=MIN_IMPROVEMENT_RATIO,
        metavar="SHARE",
        help="share of the base model's errors that must be gone (%(default)s)",
    )
    proof.add_argument(
        "--max-tier-loss",
        type=ratio,
        default=MAX_TIER_LOSS,
        metavar="CER",
        help="maximum increase of a tier's error rate (%(default)s)",
    )
    proof.add_argument(
        "--min-pages",
        type=positive,
        default=MIN_PAGES,
        metavar="N",
        help="held-out pages that it must be measured on (%(default)s)",
    )
    proof.add_argument(
        "--force", metavar="REASON", help="publish although it is not proven better; the manifest records the reason"
    )
    add_page_flags(parser, "pages to measure on, without a record")
    add_reading_flags(parser)
    place = parser.add_argument_group("place")
    place.add_argument("--volume", type=Path, required=True, metavar="DIR", help="the adapter volume; it must exist")
    place.add_argument("--name", required=True, help="the adapter's name: a-z, 0-9 and -")
    place.add_argument("--no-activate", action="store_true", help="do not change the version in use")
    place.add_argument("--push-to-hub", action="store_true", help="upload the version to the Hugging Face Hub as well")
    add_hub_flags(place)
    parser.set_defaults(run=run_publish)


def run_publish(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns what was published.

    Everything that can be checked before measuring is. A `HubError` leaves the version published on the volume.
    """
    check_name(options.name)
    _check_flags(options)
    # Fail on a missing token before pages are read for minutes.
    repository = hub_repository(options) if options.push_to_hub else None
    _require_volume(options.volume)
    require_writable(options.json)
    place = locate_adapter(str(options.adapter or options.imported))
    base_model = str(local_model(options.base or model_of_run(run_folder(place.folder)) or DEFAULT_MODEL))
    records = _records(options, place, base_model, settings)
    parts = measurements(*records) if records is not None else None
    base = base_identity(base_model, options.base_revision, parts[0] if parts else None)
    evaluation = None
    if parts is not None:
        check_records(place.folder, base, *parts)
        margins = Margins(options.min_improvement, options.max_tier_loss, options.min_pages)
        evaluation = compare(*parts, margins)
    forced = require_better(evaluation, options.force)
    announcement = Announcement(
        name=options.name,
        base=base,
        code=code_version("trainer publish" if options.adapter else "trainer publish --from"),
        evaluation=evaluation,
        training_data=_training_data(options, place),
        forced=forced,
    )
    policy = ServingPolicy(
        module_shapes=module_shapes(Path(base_model)) if Path(base_model).is_dir() else None,
        limits=ContentLimits(max_rank=options.max_rank),
    )
    volume = AdapterVolume(options.volume)
    _sweep(volume, options.name)
    with span("publish.write"):
        published = publish(volume, place.folder, announcement, activate=not options.no_activate, policy=policy)
    report = _report(published, evaluation, options.force is not None and forced is None)
    if repository is None:
        return report
    # The version is on the volume, whether or not the upload succeeds.
    sys.stderr.write(f"{report}\n")
    return push_version(volume, published.reference, repository, private=options.hub_private)


def _check_flags(options: argparse.Namespace) -> None:
    has_pages = options.data is not None or options.real is not None
    if options.base_evaluation is not None and options.evaluation is None:
        raise UsageError("--base-evaluation goes with --evaluation: the record of the adapter")
    if has_pages and options.evaluation is not None:
        raise UsageError("give a record with --evaluation, or pages to measure on, not both")
    if options.json is not None and not has_pages:
        raise UsageError("--json writes a measurement; give --data or --real")
    if (options.trained_on_sha256 is None) != (options.trained_on_samples is None):
        raise UsageError("give --trained-on-sha256 and --trained-on-samples together")
    if options.trained_on is not None and options.trained_on_sha256 is not None:
        raise UsageError("give --trained-on, or --trained-on-sha256 and --trained-on-samples")
    if options.imported is not None and options.base is None:
        raise UsageError("an adapter trained elsewhere needs --base: the model that it was trained on")
    if options.force is not None and not options.force.strip():
        raise UsageError("--force needs a reason")


def _records(
    options: argparse.Namespace, place: AdapterLocation, base_model: str, settings: TrainerSettings
) -> tuple[EvaluationResult, EvaluationResult | None] | None:
    """The record of the adapter, and that of the base model if it is another; None where nothing was measured."""
    if options.data is not None or options.real is not None:
        return _measure(options, place, base_model, settings), None
    if options.evaluation is not None:
        base = load_result(options.base_evaluation) if options.base_evaluation is not None else None
        return load_result(options.evaluation), base
    of_run = run_folder(place.folder) / RECORD_NAME
    return (load_result(of_run), None) if of_run.is_file() else None


def _measure(
    options: argparse.Namespace, place: AdapterLocation, base_model: str, settings: TrainerSettings
) -> EvaluationResult:
    # Imported late: torch and the model take seconds, which --help does not need.
    from trainer.reading.loading import load_adapter_readers

    device = options.device or settings.device
    with TemporaryDirectory(prefix="deepsynth-publish-") as scratch:
        sets = page_sets(options, Path(scratch))
        readers = load_adapter_readers(base_model, place, device, settings.num_threads, reading_options(options))
        result, _ = evaluate(sets, readers, sys.stderr, SeenPages.of_run(run_folder(place.folder)))
    if options.json is not None:
        options.json.write_text(to_json(result), encoding="utf-8")
    return result


def _training_data(options: argparse.Namespace, place: AdapterLocation) -> TrainingData | None:
    if options.trained_on is not None:
        part = training_part(options.trained_on)
        return TrainingData(sha256=part.fingerprint, samples=part.num_samples)
    if options.trained_on_sha256 is None:
        return training_data_of_run(run_folder(place.folder))
    try:
        return TrainingData(sha256=options.trained_on_sha256, samples=options.trained_on_samples)
    except ValueError as error:
        raise UsageError("--trained-on-sha256 is not 64 hex digits") from error


def _require_volume(root: Path) -> None:
    """Raise `VolumeError` where publishing would fail after pages were read for minutes."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise VolumeError(Fault.VOLUME_UNAVAILABLE, f"the volume {root} {what}")
    if not os.access(root, os.W_OK | os.X_OK):
        raise VolumeError(Fault.PERMISSION_DENIED, f"the volume {root} cannot be written")


def _sweep(volume: AdapterVolume, name: str) -> None:
    try:
        sweep(volume, name)
    except VolumeError as error:
        if error.fault is not Fault.UNKNOWN_ADAPTER:
            raise


def _proof(evaluation: Evaluation) -> str:
    """What the proof rests on, as the manifest says it."""
    sets = ", ".join(each.name + (f" ({each.split})" if each.split else "") for each in evaluation.sets)
    change = evaluation.cer_change
    interval = f"; change {100 * change[0]:+.2f} to {100 * change[1]:+.2f} points" if change else ""
    return f"measured on {evaluation.num_pages} pages of {sets}{interval}"


def _report(published: Published, evaluation: Evaluation | None, unneeded_force: bool) -> str:
    lines = [f"published {published.reference}"]
    if evaluation is not None:
        lines.append(f"CER {evaluation.base.cer:.2%} of the base, {evaluation.adapter.cer:.2%} of the adapter")
        lines.append(_proof(evaluation))
    if published.manifest.forced is not None:
        lines.append(f"forced: {published.manifest.forced}")
    if unneeded_force:
        lines.append("--force was not needed and is not recorded")
    in_use = "none" if published.in_use is None else f"{published.reference.name}@{published.in_use}"
    return "\n".join([*lines, f"in use: {in_use}"])
