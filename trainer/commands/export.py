"""`python -m trainer export`: an adapter for other programs, as a PEFT folder or merged into its base model."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from shared.contract.peft_config import MAX_CONFIG_BYTES, parse_config, published_config
from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from trainer.commands.merge import (
    AdapterOrigin,
    add_adapter_flags,
    add_merge_flags,
    find_origin,
    require_new,
    run_merge,
    write_new_folder,
)
from trainer.config import TrainerSettings
from trainer.publishing.hub import CARD_FILE, peft_card

FORMS = ("peft", "merged")


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("export", help="write an adapter for other programs", description=__doc__)
    parser.add_argument(
        "--to", choices=FORMS, required=True, help="peft: the adapter alone; merged: a full checkpoint, as merge writes"
    )
    add_adapter_flags(parser)
    add_merge_flags(parser)
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace, settings: TrainerSettings) -> str:
    """Run the command; returns what was written."""
    if options.to == "merged":
        return run_merge(options, settings)
    require_new(options.out)
    origin = find_origin(options.adapter, options.volume, options.base)
    return write_new_folder(options.out, lambda partial: _export(origin, options.out, partial))


def _export(origin: AdapterOrigin, target: Path, partial: Path) -> str:
    """Write PEFT's two files and a card, without what belongs to the machine that trained."""
    # Imported late: torch takes seconds, which --help does not need.
    from trainer.reading.adapters import read_adapter

    adapter = read_adapter(origin.place.folder)  # refuses what the contract refuses
    partial.mkdir(parents=True)
    with (origin.place.folder / CONFIG_FILE).open("rb") as file:
        config = parse_config(file.read(MAX_CONFIG_BYTES))
    (partial / CONFIG_FILE).write_bytes(published_config(config, origin.base_id))
    shutil.copyfile(origin.place.folder / WEIGHTS_FILE, partial / WEIGHTS_FILE)
    (partial / CARD_FILE).write_text(peft_card(target.name, origin.base_id, adapter.config), encoding="utf-8")
    return f"wrote {target}: {len(adapter.modules)} adapted modules for {origin.base_id}"
