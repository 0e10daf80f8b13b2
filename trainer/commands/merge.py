"""`python -m trainer merge`: write base and adapter as one full checkpoint, and check that it reads the same.

The checkpoint has the base's layout, so transformers, vLLM and the service load it as they load the base. It is written
under a temporary name, held-out pages are read with base and adapter and with the merged checkpoint, and only then is
it renamed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from shared.contract.identity import weights_revision
from shared.contract.manifest import MAX_MANIFEST_BYTES, BaseIdentity, parse_manifest
from shared.contract.shipped import local_model
from shared.contract.volume import MANIFEST_FILE
from shared.deepseek_ocr.reading_layout import ReadingLayout
from trainer.commands.flags import (
    DEFAULT_MODEL,
    UsageError,
    add_page_flags,
    add_reading_flags,
    page_sets,
    ratio,
    reading_options,
)
from trainer.config import TrainerSettings
from trainer.data.sources.splits import VALIDATION
from trainer.evaluation.paths import AdapterLocation, locate_adapter, run_folder
from trainer.evaluation.provenance import current_date, package_versions, source_commit
from trainer.evaluation.run import read_all
from trainer.publishing.agreement import (
    MAX_CER_LOSS,
    MAX_DIFFERENCE,
    Agreement,
    MergeError,
    compare_readings,
    require_agreement,
)
from trainer.publishing.gate import RUN_FILE
from trainer.publishing.hub import CARD_FILE, MERGE_FILE, merged_card
from trainer.reading.protocol import ReaderError

if TYPE_CHECKING:
    from trainer.evaluation.samples import SampleSet

DTYPE_NAMES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class AdapterOrigin:
    """Where an adapter comes from.

    Attributes:
        place: its folder and label.
        base: folder or repository of its base model.
        base_id: public name of that model.
        revision: of the base, where the version's manifest states it.
        held_out: source of the pages that its run checked on; None if that is unknown.
    """

    place: AdapterLocation
    base: str
    base_id: str
    revision: str | None = None
    held_out: str | None = None


def add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("merge", help="write base and adapter as one checkpoint", description=__doc__)
    add_adapter_flags(parser)
    add_merge_flags(parser)
    parser.set_defaults(run=run_merge)


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name an adapter, its base and the folder to write."""
    what = parser.add_argument_group("adapter")
    what.add_argument(
        "--adapter", required=True, metavar="DIR|NAME[@VERSION]", help="training run, PEFT folder, or published adapter"
    )
    what.add_argument("--volume", type=Path, metavar="DIR", help="the adapter volume, for a published adapter")
    what.add_argument(
        "--base", metavar="MODEL", help=f"base model: folder or repository; default: the run's, else {DEFAULT_MODEL}"
    )
    what.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; it must not exist")


def add_merge_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a merged checkpoint and its check."""
    form = parser.add_argument_group("merged checkpoint")
    form.add_argument("--dtype", choices=DTYPE_NAMES, help="of the weights; default: as the base has them")
    form.add_argument(
        "--max-difference",
        type=ratio,
        default=MAX_DIFFERENCE,
        metavar="SHARE",
        help="edits between the texts of both, over their characters (%(default)s)",
    )
    form.add_argument(
        "--max-cer-loss",
        type=ratio,
        default=MAX_CER_LOSS,
        metavar="CER",
        help="maximum increase of the error rate (%(default)s)",
    )
    add_page_flags(parser, "held-out pages to read with both; default: the run's validation pages")
    add_reading_flags(parser)


def run_merge(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns what was written and how both read."""
    require_new(options.out)
    origin = find_origin(options.adapter, options.volume, options.base)
    with TemporaryDirectory(prefix="deepsynth-merge-") as scratch:
        sets = _held_out(options, origin, Path(scratch))
        return write_new_folder(options.out, lambda partial: _merge(options, settings, origin, sets, partial))


def find_origin(given: str, volume: Path | None, base: str | None) -> AdapterOrigin:
    """Find an adapter and what it was trained on.

    Args:
        given: a folder or a name.
        volume: the adapter volume in which names are looked up.
        base: base model; None for what the run or the manifest says.

    Returns:
        The adapter's origin.

    Raises:
        ReaderError: there is no such adapter.
        VolumeError: the volume has no such adapter.
        AdapterRefusedError: its manifest is invalid.
    """
    place = locate_adapter(given, volume)
    record = _json(run_folder(place.folder) / RUN_FILE)
    trained = record.get("options") or {}
    stated = _manifest_base(place.folder)
    named = stated.model_id if stated is not None else ""
    chosen = base or trained.get("model") or (DEFAULT_MODEL if named in {"", Path(DEFAULT_MODEL).name} else named)
    chosen = str(local_model(chosen))
    return AdapterOrigin(
        place,
        chosen,
        stated.model_id if stated else _public_name(chosen),
        stated.revision if stated else None,
        trained.get("eval_dataset_name") or trained.get("dataset_name"),
    )


def require_new(folder: Path) -> None:
    """Raise `UsageError` if a folder to write exists."""
    if folder.exists():
        raise UsageError(f"{folder} exists already: name another folder with --out")


def write_new_folder(target: Path, write: Callable[[Path], str]) -> str:
    """Let `write` fill a temporary folder next to `target`, and rename it; a failure leaves nothing. Returns its text.

    Raises what `write` raises.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = write(partial)
        _sync(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return text


def _merge(
    options: argparse.Namespace,
    settings: TrainerSettings,
    origin: AdapterOrigin,
    sets: list[SampleSet],
    partial: Path,
) -> str:
    # Imported late: torch and the model take seconds, which --help does not need.
    from shared.deepseek_ocr.checkpoint import CheckpointError
    from trainer.publishing.merging import download_base, write_merged
    from trainer.reading.adapters import read_adapter
    from trainer.reading.loading import load_adapter_readers, load_model_reader

    adapter = read_adapter(origin.place.folder)
    try:
        base = download_base(origin.base)
        revision = weights_revision(base)
        _check_base(origin, base, revision)
        merged = write_merged(base, adapter, partial, options.dtype)
    except CheckpointError as error:
        raise ReaderError(f"{error}; name another base [model_unusable]") from error
    pages = [sample for each in sets for sample in each.samples]
    device, reading = options.device or settings.device, reading_options(options)
    if reading.layout is ReadingLayout.AUTO:
        # The merged weights alone would be read by lines, and what is compared is weights.
        reading = replace(reading, layout=ReadingLayout.PAGE)
    # One model at a time: two of them may not fit.
    adapted, base_alone = load_adapter_readers(str(base), origin.place, device, settings.num_threads, reading)
    was = read_all(adapted, pages, sys.stderr)
    del adapted, base_alone
    now = read_all(load_model_reader(str(partial), device, settings.num_threads, reading), pages, sys.stderr)
    agreement = compare_readings(pages, was, now)
    require_agreement(agreement, options.max_difference, options.max_cer_loss)
    record = {
        "format": 1,
        "date": current_date(),
        "commit": source_commit(),
        "versions": package_versions(),
        "base": {"model_id": origin.base_id, "revision": revision},
        "adapter": {"name": origin.place.label, "sha256": adapter.sha256},
        "weights": asdict(merged),
        "check": {
            "sets": [{"name": each.name, "pages": len(each.samples), "sha256": each.sha256} for each in sets],
            **agreement.as_json(),
        },
    }
    (partial / MERGE_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (partial / CARD_FILE).write_text(merged_card(options.out.name, record), encoding="utf-8")
    return _report(options.out, merged.modules, merged.dtype, merged.rounding_ratio, agreement)


def _check_base(origin: AdapterOrigin, base: Path, revision: str | None) -> None:
    """Check the base's weights against the manifest, where that gives their checksum and not a commit."""
    if origin.revision is None or len(origin.revision) != len(revision or "") or origin.revision == revision:
        return
    raise MergeError(
        "base_mismatch",
        f"{origin.place.label} was trained on {origin.base_id} {origin.revision}; the weights of {base} are {revision}",
        "name the base model that it was trained on with --base",
    )


def _report(target: Path, modules: int, dtype: str, rounding: float, agreement: Agreement) -> str:
    return (
        f"wrote {target}: {modules} matrices changed, in {dtype} (rounding took {rounding:.2%} of the change)\n"
        f"checked: {agreement}"
    )


def _held_out(options: argparse.Namespace, origin: AdapterOrigin, scratch: Path) -> list[SampleSet]:
    """The pages that flags name, or else those of the adapter's run that training did not see."""
    if options.data is None and options.real is None and origin.held_out:
        options.data, options.split = origin.held_out, options.split or VALIDATION
    sets = [each for each in page_sets(options, scratch) if each.samples]
    if not sets:
        raise UsageError("a merged checkpoint is checked by reading: name held-out pages with --data or --real")
    return sets


def _manifest_base(folder: Path) -> BaseIdentity | None:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1)).base


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _public_name(model: str) -> str:
    return Path(model).resolve().name if Path(model).is_dir() else model


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
