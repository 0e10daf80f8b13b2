"""`python -m trainer list`, `activate` and `withdraw`: the versions of an adapter on the volume, and which is in use.

A running service needs no restart: it looks at the volume several times a second, and finishes the documents it has
begun with the version that it began them with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.contract.identity import AdapterRef, parse_reference
from shared.contract.manifest import MAX_MANIFEST_BYTES, parse_manifest
from shared.contract.refusals import AdapterRefusedError
from shared.contract.volume import MANIFEST_FILE, AdapterListing, AdapterVolume, served_version
from shared.contract.withdrawal import withdraw, withdrawal_reason
from trainer.commands.flags import UsageError
from trainer.config import TrainerSettings

_HEADER = ("adapter", "state", "published", "CER base", "CER adapter", "note")


def add_volume_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    listing = commands.add_parser("list", help="list the adapters on a volume", description=__doc__)
    listing.add_argument("names", nargs="*", metavar="NAME", help="adapters to list; default: all")
    activating = commands.add_parser("activate", help="put a published version into use", description=__doc__)
    activating.add_argument("reference", metavar="NAME@VERSION", help="the version that NAME is to serve")
    withdrawing = commands.add_parser("withdraw", help="take a published version away for good", description=__doc__)
    withdrawing.add_argument("reference", metavar="NAME@VERSION", help="the version; its number is not used again")
    withdrawing.add_argument("--why", required=True, metavar="REASON", help="kept in the mark, for people")
    for parser, run in ((listing, run_list), (activating, run_activate), (withdrawing, run_withdraw)):
        parser.add_argument("--volume", type=Path, required=True, metavar="DIR", help="the adapter volume")
        parser.set_defaults(run=run)


def run_list(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the command; returns a table of every version. Raises `VolumeError`."""
    volume = AdapterVolume(options.volume)
    listings = [volume.listing(name) for name in options.names] or list(volume.discover().values())
    rows = [_HEADER, *(row for listing in listings for row in _rows(volume, listing))]
    if len(rows) == 1:
        return f"{options.volume} holds no adapters"
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def run_activate(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the command; returns what is in use now. Raises `VolumeError`, or `UsageError` without a version."""
    volume, reference = AdapterVolume(options.volume), _version(options.reference)
    before = served_version(volume.listing(reference.name))
    volume.activate(reference)
    was = "nothing was in use" if before is None else f"was {reference.name}@{before}"
    return f"{reference} is in use ({was}); running services switch once they have loaded and tried it"


def run_withdraw(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the command; returns what is in use now. Raises `VolumeError`, or `UsageError` without version or reason."""
    if not options.why.strip():
        raise UsageError("--why needs a reason")
    volume, reference = AdapterVolume(options.volume), _version(options.reference)
    served = withdraw(volume, reference, options.why)
    now = f"{reference.name}@{served} is in use" if served else f"{reference.name} has no version in use"
    return f"{reference} is withdrawn; {now}. Running services finish the pages that they have begun with it"


def _version(text: str) -> AdapterRef:
    name, version = parse_reference(text)
    if version is None:
        raise UsageError(f"name a version, such as {name}@1; `trainer list --volume DIR` shows those there are")
    return AdapterRef(name, version)


def _rows(volume: AdapterVolume, listing: AdapterListing) -> list[tuple[str, ...]]:
    in_use = served_version(listing)
    numbers = sorted({*listing.versions, *listing.withdrawn, *listing.incomplete})
    rows: list[tuple[str, ...]] = []
    for number in numbers:
        reference = AdapterRef(listing.name, number)
        if number in listing.withdrawn:
            state, note = "withdrawn", withdrawal_reason(volume, reference) or ""
        elif number in listing.incomplete:
            state, note = "incomplete", "no manifest; never served"
        else:
            state, note = ("in use" if number == in_use else "published"), ""
        rows.append((str(reference), state, *_figures(volume, reference, note)))
    return rows


def _figures(volume: AdapterVolume, reference: AdapterRef, note: str) -> tuple[str, str, str, str]:
    path = volume.root / reference.name / str(reference.version) / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except OSError:
        return "", "", "", note
    except AdapterRefusedError as error:
        return "", "", "", note or error.code
    measured = manifest.evaluation
    rates = (f"{measured.base.cer:.2%}", f"{measured.adapter.cer:.2%}") if measured else ("", "")
    forced = f"forced: {manifest.forced}" if manifest.forced else ""
    return f"{manifest.created:%Y-%m-%d %H:%M}", *rates, note or forced
