"""`python -m trainer push`: upload a published version to the Hugging Face Hub, by `trainer.publishing.hub`."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.contract.identity import AdapterRef
from shared.contract.manifest import MAX_MANIFEST_BYTES, parse_manifest
from shared.contract.refusals import AdapterRefusedError, Reason
from shared.contract.volume import MANIFEST_FILE, AdapterVolume
from trainer.commands.flags import UsageError
from trainer.config import TrainerSettings
from trainer.publishing.hub import HubRepository, adapter_card, open_repository, push_folder


def add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("push", help="upload a published adapter to the Hugging Face Hub", description=__doc__)
    parser.add_argument("reference", metavar="NAME[@VERSION]", help="which one; without a version that in use")
    parser.add_argument("--volume", type=Path, required=True, metavar="DIR", help="the adapter volume")
    add_hub_flags(parser)
    parser.set_defaults(run=run_push)


def add_hub_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what says where to."""
    parser.add_argument("--hub-model-id", metavar="OWNER/NAME", help="repository of the Hub; made where it is new")
    parser.add_argument("--hub-private", action="store_true", help="make it a private one")


def run_push(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Carry the command out.

    Args:
        options: Its flags.

    Returns:
        What was done, for people.

    Raises:
        UsageError: No repository is named.
        VolumeError: The volume has no such version.
        HubError: The Hub failed.
    """
    volume = AdapterVolume(options.volume)
    reference = volume.resolve(options.reference)
    return push_version(volume, reference, hub_repository(options), private=options.hub_private)


def hub_repository(options: argparse.Namespace) -> HubRepository:
    """The repository that the flags name, seen to be within reach.

    Args:
        options: With the flags of `add_hub_flags`.

    Returns:
        The repository.

    Raises:
        UsageError: None is named.
        HubError: There is no token, or the Hub does not take it.
    """
    if options.hub_model_id is None:
        raise UsageError("say where to with --hub-model-id OWNER/NAME")
    return open_repository(options.hub_model_id)


def push_version(volume: AdapterVolume, reference: AdapterRef, repository: HubRepository, *, private: bool) -> str:
    """Upload a version as it lies on the volume, with a card.

    Args:
        volume: Where it lies.
        reference: Which one.
        repository: Where to.
        private: Whether a new repository is.

    Returns:
        What was done, for people.

    Raises:
        AdapterRefusedError: The version has no manifest any more.
        HubError: The Hub failed.
    """
    folder = volume.root / reference.name / str(reference.version)
    try:
        with (folder / MANIFEST_FILE).open("rb") as file:
            manifest = parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except FileNotFoundError as error:
        raise AdapterRefusedError(Reason.MANIFEST_MISSING, f"{reference} has none") from error
    again = f"python -m trainer push {reference} --volume DIR --hub-model-id {repository.repo_id}"
    url = push_folder(repository, folder, adapter_card(manifest), f"{reference}", private=private, again=again)
    return f"pushed {reference} to {url}"
