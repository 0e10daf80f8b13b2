"""Adapters and merged checkpoints on the Hugging Face Hub: a repository for each, a commit per version.

Owns what is uploaded, its cards, and how the Hub's errors are reported. The token is that of the Hub's client (`hf auth
login`, or HF_TOKEN). Of an adapter's folder only the files named here are uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from shared.contract.manifest import AdapterManifest, Metrics
from shared.contract.peft_config import PeftConfig
from shared.contract.volume import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"
MERGE_FILE = "merge.json"
"""The record of a merged checkpoint: what it was made of, and how it was checked."""
_UPLOADED = (WEIGHTS_FILE, CONFIG_FILE, MANIFEST_FILE)
_REASONS = {
    401: "the Hub does not take the token; log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; make one with write access, or name a repository of your own",
    404: "there is no such owner, or the token has no access to it",
    409: "somebody else is changing the repository; try again",
    413: "the Hub accepts no file of this size",
    429: "the Hub asks to wait; try again in a few minutes",
}


class HubError(RuntimeError):
    """The Hub cannot be reached or refused a request; the message says what to do, and what is done already."""


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A model repository that the token gives access to; it may not exist yet."""

    repo_id: str
    api: Any
    """`HfApi`, or an object with the same methods."""


def open_repository(repo_id: str, api: Any | None = None) -> HubRepository:
    """Check that the Hub can be reached and accepts the token, before anything else is done.

    Args:
        repo_id: `OWNER/NAME`.
        api: Replaces the Hub's client; None: the client.

    Returns:
        The repository; `push_folder` makes it if it is new.

    Raises:
        HubError: There is no token, or the Hub cannot be reached or does not accept it.
    """
    api = api or HfApi()
    owner, slash, name = repo_id.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise HubError(f"{repo_id} is no repository: give OWNER/NAME")
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise HubError("there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"the Hub cannot be used: {_reason(error)}") from error
    return HubRepository(repo_id, api)


def push_folder(
    repository: HubRepository, folder: Path, card: str, title: str, *, private: bool = False, again: str = ""
) -> str:
    """Upload an adapter's files and its card in one commit.

    Args:
        repository: From `open_repository`; made if it is new.
        folder: A PEFT folder, with a manifest if it was published, or a merged checkpoint.
        card: Content of README.md.
        title: First line of the commit's message.
        private: Make a new repository private; an existing one is not changed.
        again: The command to repeat the upload, for the error's message.

    Returns:
        The commit's URL.

    Raises:
        HubError: The Hub failed; nothing or everything was uploaded.
    """
    if (folder / MERGE_FILE).is_file():
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CARD_FILE)
    else:
        files = [folder / name for name in _UPLOADED if (folder / name).is_file()]
    operations = [CommitOperationAdd(path.name, path) for path in files]
    operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
    try:
        repository.api.create_repo(repository.repo_id, private=private, exist_ok=True)
        commit = repository.api.create_commit(repository.repo_id, operations=operations, commit_message=title)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        retry = f"; to try again: {again}" if again else ""
        raise HubError(f"pushing {title} to {repository.repo_id} failed: {_reason(error)}{retry}") from error
    return str(commit.commit_url)


def adapter_card(manifest: AdapterManifest) -> str:
    """README.md of a published version: what it is for and how well it reads, as its manifest says.

    Args:
        manifest: Of the version.

    Returns:
        Markdown with the Hub's head.
    """
    lora, base = manifest.lora, manifest.base
    head = ["---", "library_name: peft", "pipeline_tag: image-to-text", "tags:", "- lora", "- ocr"]
    head += _base_line(base.model_id)
    text = [
        f"# {manifest.reference}",
        f"A LoRA for `{base.model_id}` (revision `{base.revision}`): rank {lora.rank}, alpha {lora.alpha:g}, on "
        f"{', '.join(lora.targets)}.",
    ]
    evaluation = manifest.evaluation
    if evaluation is not None:
        sets = "; ".join(f"{pages.name} ({pages.pages} pages)" for pages in evaluation.sets)
        rows = [*_rows("base", evaluation.base), *_rows("adapter", evaluation.adapter)]
        text += [
            f"Measured on {sets}. Texts compared after: {evaluation.normalisation}.",
            "\n".join(["| reader | tier | pages | CER | WER | exact |", "|---|---|---:|---:|---:|---:|", *rows]),
        ]
    if manifest.forced is not None:
        text.append(f"Published although it is not proven better: {manifest.forced}")
    if manifest.training_data is not None:
        data = manifest.training_data
        text.append(f"Trained on {data.samples} samples, fingerprint `{data.sha256}`.")
    code = manifest.code
    text.append(f"Published by {code.program} {code.version}, commit `{code.commit}`.")
    return "\n".join([*head, "---", "", "\n\n".join(text), ""])


def peft_card(name: str, base: str, config: PeftConfig) -> str:
    """README.md of an exported adapter.

    Args:
        name: Title.
        base: Public name of the base model.
        config: The adapter's.

    Returns:
        Markdown with the Hub's head.
    """
    head = ["---", "library_name: peft", "pipeline_tag: image-to-text", "tags:", "- lora", "- ocr", *_base_line(base)]
    text = f"A LoRA for `{base}`: rank {config.rank}, alpha {config.alpha:g}."
    return "\n".join([*head, "---", "", f"# {name}", "", text, ""])


def merged_card(name: str, record: Mapping[str, Any]) -> str:
    """README.md of a merged checkpoint.

    Args:
        name: Title.
        record: Content of its `merge.json`.

    Returns:
        Markdown with the Hub's head.
    """
    base, adapter, check = record["base"], record["adapter"], record["check"]
    head = ["---", "library_name: transformers", "pipeline_tag: image-to-text", "tags:", "- ocr"]
    head += [*_base_line(base["model_id"]), *(["base_model_relation: finetune"] if "/" in base["model_id"] else [])]
    text = [
        f"# {name}",
        f"`{base['model_id']}` (revision `{base['revision']}`) with the adapter `{adapter['name']}` (SHA-256 of its "
        f"weights `{adapter['sha256']}`) merged into its weights, as {record['weights']['dtype']}.",
        f"Checked on {check['pages']} held-out pages: {check['equal_pages']} read the same as with base and adapter, "
        f"the texts differ by {check['difference']:.2%} of their characters; CER {check['adapter_cer']:.2%} before, "
        f"{check['merged_cer']:.2%} merged.",
        "Adapters of the base model do not fit these weights.",
    ]
    return "\n".join([*head, "---", "", "\n\n".join(text), ""])


def _base_line(base: str) -> list[str]:
    return [f"base_model: {base}"] if "/" in base else []


def _rows(name: str, metrics: Metrics) -> list[str]:
    return [
        f"| {name} | {tier} | {figures.pages} | {figures.cer:.2%} | {figures.wer:.2%} | {figures.exact_ratio:.0%} |"
        for tier, figures in metrics.tiers.items()
    ]


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        return f"it cannot be reached ({error})" if isinstance(error, OSError) else str(error)
    return _REASONS.get(status, f"it answered {status}; try again later")
