"""`python -m trainer push`: upload a published version, or an exported folder, to the Hugging Face Hub.

`trainer.publishing.hub` does the upload.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.contract.identity import AdapterRef
from shared.contract.manifest import MAX_MANIFEST_BYTES, parse_manifest
from shared.contract.refusals import AdapterRefusedError, Reason
from shared.contract.volume import CONFIG_FILE, MANIFEST_FILE, AdapterVolume
from trainer.commands.flags import UsageError
from trainer.config import TrainerSettings
from trainer.publishing.hub import (
    CARD_FILE,
    MERGE_FILE,
    HubRepository,
    adapter_card,
    open_repository,
    push_folder,
)
from trainer.tracing import span


def add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "push", help="upload an adapter or a merged checkpoint to the Hugging Face Hub", description=__doc__
    )
    parser.add_argument(
        "reference", metavar="NAME[@VERSION]|DIR", help="the adapter, in use without a version; or an exported folder"
    )
    parser.add_argument("--volume", type=Path, metavar="DIR", help="the adapter volume, for a published adapter")
    add_hub_flags(parser)
    parser.set_defaults(run=run_push)


def add_hub_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags that name the repository."""
    parser.add_argument(
        "--hub-model-id", metavar="OWNER/NAME", help="repository of the Hub; created if it does not exist"
    )
    parser.add_argument("--hub-private", action="store_true", help="create it as a private one")


def run_push(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the command; returns what was uploaded."""
    if options.volume is None:
        return push_exported(Path(options.reference), hub_repository(options), private=options.hub_private)
    volume = AdapterVolume(options.volume)
    reference = volume.resolve(options.reference)
    return push_version(volume, reference, hub_repository(options), private=options.hub_private)


def hub_repository(options: argparse.Namespace) -> HubRepository:
    """The repository of `add_hub_flags`; raises `UsageError` without one, `HubError` if it cannot be reached."""
    if options.hub_model_id is None:
        raise UsageError("name the repository with --hub-model-id OWNER/NAME")
    return open_repository(options.hub_model_id)


def push_exported(folder: Path, repository: HubRepository, *, private: bool) -> str:
    """Upload a folder that `merge` or `export` wrote, with its card; `private` applies to a new repository.

    Raises `UsageError` if the folder is another, or `HubError`.
    """
    is_exported = (folder / MERGE_FILE).is_file() or (folder / CONFIG_FILE).is_file()
    if not (is_exported and (folder / CARD_FILE).is_file()):
        raise UsageError(
            f"{folder} is not what `trainer merge` or `trainer export` wrote; for a published adapter give --volume"
        )
    again = f"python -m trainer push {folder} --hub-model-id {repository.repo_id}"
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    url = push_folder(repository, folder, card, folder.resolve().name, private=private, again=again)
    return f"pushed {folder} to {url}"


def push_version(volume: AdapterVolume, reference: AdapterRef, repository: HubRepository, *, private: bool) -> str:
    """Upload a version from the volume with a card; `private` applies to a new repository.

    Raises `AdapterRefusedError` if the version's manifest is gone, or `HubError`.
    """
    folder = volume.root / reference.name / str(reference.version)
    try:
        with (folder / MANIFEST_FILE).open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except FileNotFoundError as error:
        raise AdapterRefusedError(Reason.MANIFEST_MISSING, f"{reference} has none") from error
    again = f"python -m trainer push {reference} --volume DIR --hub-model-id {repository.repo_id}"
    with span("push.upload"):
        url = push_folder(repository, folder, adapter_card(manifest), f"{reference}", private=private, again=again)
    return f"pushed {reference} to {url}"
