"""From a trained adapter and two evaluations to a published version, or to the reasons why not.

Owns what the trainer requires of an adapter before it is published: that base and adapter read the same pages in the
same way, with the same weights, and that the adapter is better by the given margins. `shared.contract.publication`
writes the version to the volume. Knows no flags and no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from shared.contract.identity import downloaded_commit, weights_revision
from shared.contract.manifest import (
    BaseIdentity,
    CodeVersion,
    EvaluatedSet,
    Evaluation,
    Metrics,
    TierMetrics,
    TrainingData,
)
from shared.contract.refusals import AdapterRefusedError, Reason
from shared.contract.volume import WEIGHTS_FILE
from shared.deepseek_ocr.registry import find_kind
from trainer.evaluation.provenance import package_version, source_commit
from trainer.evaluation.results import (
    ADAPTER_KEY,
    LAYOUT_KEY,
    NORMALISATION,
    TASK_KEY,
    WEIGHTS_KEY,
    EvaluationResult,
    ReaderResult,
    SetRecord,
    is_adapter,
)

DISTRIBUTION = "deepsynth-ocr"
RUN_FILE = "run.json"
"""Record of a training run: its options, its data and its versions."""
MIN_IMPROVEMENT_RATIO = 0.05
"""Share of the base's character errors that must disappear; a smaller change may be due to the choice of pages."""
MIN_PAGES = 20
"""Pages that a proof takes; the interval of fewer says little about other pages."""
MAX_TIER_LOSS = 0.01
"""Largest increase of the CER of any kind of page: one percentage point."""
MODE_KEY = "mode"
_ASKED_KEYS = (TASK_KEY, MODE_KEY, "max_new_tokens", LAYOUT_KEY)
_WEIGHT_SUFFIX = ".weight"
_LINEAR_DIMENSIONS = 2


class PublicationError(ValueError):
    """Records or flags that do not match; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Margins:
    """How much better than the base an adapter must be."""

    min_improvement_ratio: float = MIN_IMPROVEMENT_RATIO
    max_tier_loss: float = MAX_TIER_LOSS
    min_pages: int = MIN_PAGES


@dataclass(frozen=True, slots=True)
class Measurement:
    """One reader's results from a record, and the pages they are about."""

    sets: tuple[SetRecord, ...]
    reader: ReaderResult


def measurements(record: EvaluationResult, base_record: EvaluationResult | None) -> tuple[Measurement, Measurement]:
    """Find base and adapter in records.

    Args:
        record: Has the adapter's results, and the base's too if `base_record` is None.
        base_record: Has the base model's results only.

    Returns:
        The base's results and the adapter's.

    Raises:
        PublicationError: One of them is missing or has no error rates, or the base's record is about an adapter.
    """
    if not all(reader.tiers for each in (record, base_record) if each is not None for reader in each.readers):
        raise PublicationError("a record has page tests alone; evaluate on pages with known texts")
    if base_record is None:
        base, adapter = record.base, record.adapter
        if base is None or adapter is None:
            raise PublicationError(
                "the record must have base and adapter both: `evaluate --adapter` writes one that does, or give "
                "the base's own with --base-evaluation"
            )
        return Measurement(record.sets, base), Measurement(record.sets, adapter)
    first = base_record.readers[0]
    if is_adapter(first.details):
        raise PublicationError("the base's record is about an adapter; evaluate the base model alone")
    return Measurement(base_record.sets, first), Measurement(record.sets, record.adapter or record.readers[0])


def compare(base: Measurement, adapter: Measurement, margins: Margins) -> Evaluation:
    """Combine the results of base and adapter.

    Args:
        base: Results of the base model.
        adapter: Results of the base model with the adapter.
        margins: Required margins, for the manifest.

    Returns:
        The manifest's evaluation.

    Raises:
        PublicationError: The pages, prompts or weights differ.
    """
    if [pages.sha256 for pages in base.sets] != [pages.sha256 for pages in adapter.sets]:
        raise PublicationError("base and adapter read different pages; evaluate both on the same set")
    for key in (*_ASKED_KEYS, WEIGHTS_KEY):
        ours, theirs = base.reader.details.get(key), adapter.reader.details.get(key)
        if ours != theirs and (key in _ASKED_KEYS or (ours and theirs)):
            raise PublicationError(f"base and adapter were read with different {key}: {ours} and {theirs}")
    if _sizes(base.reader) != _sizes(adapter.reader):
        raise PublicationError("base and adapter read different tiers or numbers of pages; give both the same flags")
    return Evaluation(
        sets=tuple(
            EvaluatedSet(
                name=pages.name, pages=pages.pages, sha256=pages.sha256, split=pages.split, seen_pages=pages.seen_pages
            )
            for pages in adapter.sets
        ),
        normalisation=NORMALISATION,
        min_improvement_ratio=margins.min_improvement_ratio,
        max_tier_loss=margins.max_tier_loss,
        min_pages=margins.min_pages,
        cer_change=_change(base.reader, adapter.reader),
        task=adapter.reader.details.get(TASK_KEY),
        mode=adapter.reader.details.get(MODE_KEY),
        base=_metrics(base.reader),
        adapter=_metrics(adapter.reader),
    )


def check_records(adapter_folder: Path, identity: BaseIdentity, base: Measurement, adapter: Measurement) -> None:
    """Check that the results are about this adapter and this base model, as far as the records tell.

    Args:
        adapter_folder: PEFT folder to be published.
        identity: The base model that the adapter was trained on.
        base: Results of the base model.
        adapter: Results of the adapter.

    Raises:
        PublicationError: A record is about another adapter or other weights.
    """
    measured = adapter.reader.details.get(ADAPTER_KEY)
    weights = adapter_folder / WEIGHTS_FILE
    if measured is not None and weights.is_file() and measured != _sha256(weights):
        raise PublicationError(f"the record is about another adapter than {adapter_folder}; evaluate this one")
    for part in (base, adapter):
        stated = part.reader.details.get(WEIGHTS_KEY)
        if stated is not None and len(identity.revision) == len(stated) and stated != identity.revision:
            raise PublicationError("a record is about other weights of the base model; evaluate on those given")


def require_better(evaluation: Evaluation | None, forced: str | None) -> str | None:
    """Refuse an adapter that is not better than its base, unless a reason to publish it is given.

    Args:
        evaluation: Base and adapter on the same pages; None if they were not evaluated.
        forced: Why to publish it anyway; None if there is no reason.

    Returns:
        The manifest's `forced`: None if the adapter is better.

    Raises:
        AdapterRefusedError: It was not evaluated or is not better, and there is no reason (`not_evaluated`,
            `not_better`).
    """
    if evaluation is not None and not evaluation.objections:
        return None
    if forced is not None:
        return forced
    if evaluation is None:
        raise AdapterRefusedError(Reason.NOT_EVALUATED, "no records of base and adapter")
    raise AdapterRefusedError(Reason.NOT_BETTER, "; ".join(evaluation.objections))


def base_identity(model: str, revision: str | None, measured: Measurement | None) -> BaseIdentity:
    """Name the base model.

    Args:
        model: A checkpoint's folder, or the name of a repository.
        revision: Commit of the repository; None: the fingerprint of the weights, of a repository the commit that has
            been downloaded.
        measured: Results of the base model, whose record may have the fingerprint too.

    Returns:
        Name and revision; never a local path.

    Raises:
        PublicationError: The revision is unknown or invalid.
    """
    folder = Path(model)
    if folder.is_dir():
        return _identity(folder.resolve().name, revision or weights_revision(folder))
    known = measured.reader.details.get(WEIGHTS_KEY) if measured else None
    return _identity(model, revision or known or downloaded_commit(model))


def module_shapes(folder: Path) -> Mapping[str, tuple[int, int]] | None:
    """The linear modules of a base model in a folder.

    Args:
        folder: Has config.json and safetensors files.

    Returns:
        `(outputs, inputs)` by the module's whole name; None for a model whose modules have other names than its
        tensors, such as DeepSeek-OCR-2.

    Raises:
        PublicationError: A file cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PublicationError(f"{folder} is no checkpoint: its config.json cannot be read") from error
    kind = find_kind(config.get("model_type"))
    if kind is None or not kind.names_are_tensors:
        return None
    shapes: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in sorted(file.keys()):
                    shape = file.get_slice(name).get_shape() if name.endswith(_WEIGHT_SUFFIX) else []
                    if len(shape) == _LINEAR_DIMENSIONS:
                        shapes[name.removesuffix(_WEIGHT_SUFFIX)] = (shape[0], shape[1])
        except SafetensorError as error:
            raise PublicationError(f"{path} cannot be read: {error}") from error
    return shapes


def model_of_run(run: Path) -> str | None:
    """The base model that a training run began with.

    Args:
        run: Folder of a training run.

    Returns:
        A folder or a repository; None if the run does not say.
    """
    try:
        record = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
        model = record["options"]["model"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return model if isinstance(model, str) else None


def training_data_of_run(run: Path) -> TrainingData | None:
    """The training data that a training run recorded.

    Args:
        run: Folder of a training run.

    Returns:
        Fingerprint and number of samples; None if the folder is not a run.

    Raises:
        PublicationError: Its record cannot be read.
    """
    path = run / RUN_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        return TrainingData(sha256=data["fingerprint"], samples=data["num_samples"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PublicationError(f"{path} does not say what was trained on; name it with --trained-on") from error


def code_version(program: str) -> CodeVersion:
    """Version and commit of this code.

    Args:
        program: The command, such as `trainer publish`.

    Returns:
        The manifest's `code`.
    """
    return CodeVersion(program=program, version=package_version(DISTRIBUTION), commit=source_commit())


def _identity(name: str, revision: str | None) -> BaseIdentity:
    if revision is None:
        raise PublicationError(f"no revision of {name} is known; give its commit with --base-revision")
    try:
        return BaseIdentity(model_id=name, revision=revision)
    except ValueError as error:
        raise PublicationError(
            f"{revision!r} is no revision: give a commit (40 hex digits) or a SHA-256 of weights (64)"
        ) from error


def _change(base: ReaderResult, adapter: ReaderResult) -> tuple[float, float]:
    """95 % interval of the change of the CER over all pages.

    Of records made apart, whose pages cannot be paired, the ends of both readers' own intervals: at least as wide.
    """
    if adapter.cer_change is not None:
        return adapter.cer_change
    total = max(sum(score.characters for score in base.tiers.values()), 1)
    pairs = [(base.tiers[tier], score) for tier, score in adapter.tiers.items()]
    low = sum((after.cer_low - before.cer_high) * before.characters for before, after in pairs) / total
    high = sum((after.cer_high - before.cer_low) * before.characters for before, after in pairs) / total
    return float(low), float(high)


def _sizes(reader: ReaderResult) -> dict[str, tuple[int, int]]:
    return {tier: (score.pages, score.characters) for tier, score in reader.tiers.items()}


def _metrics(reader: ReaderResult) -> Metrics:
    tiers = {
        tier: TierMetrics(
            pages=score.pages,
            characters=score.characters,
            cer=float(score.cer),
            cer_capped=float(score.cer_capped),
            wer=float(score.wer),
            exact_ratio=float(score.exact_ratio),
            unfinished_ratio=float(score.unfinished_ratio),
        )
        for tier, score in reader.tiers.items()
    }
    characters = sum(tier.characters for tier in tiers.values())
    errors = sum(tier.cer * tier.characters for tier in tiers.values())
    return Metrics(cer=errors / max(characters, 1), tiers=tiers)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
