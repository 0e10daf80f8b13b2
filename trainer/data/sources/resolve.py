"""Resolve what a user typed to a source: a folder, a file, shards, or a data set of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.data.errors import DataCode, DataError
from trainer.data.sources.folder import INDEX_SUFFIXES, FolderSource, IndexSource, find_index
from trainer.data.sources.parquet import ParquetSource
from trainer.data.sources.protocol import PageSource
from trainer.data.sources.webdataset import WebDatasetSource, is_url

HUB_PREFIX: Final = "hf:"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SAVED_NAMES: Final = ("dataset_dict.json", "state.json")
"""Files that Hugging Face's `save_to_disk` writes."""
_REMEDY: Final = (
    "give a folder, a .csv, .tsv, .jsonl or .parquet file, .tar shards (a path or an http URL), "
    "or a data set of the Hugging Face Hub as OWNER/NAME"
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is opened.

    Attributes:
        image_root: folder that image paths are relative to.
        config: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        streaming: read a Hub data set without a copy on disk.
        split: skip files of other splits, where each file has one split; for other sources, `read_samples` with the
            same split skips rows.
    """

    image_root: Path | None = None
    config: str | None = None
    revision: str | None = None
    streaming: bool = False
    split: str | None = None


def open_source(spec: str, options: SourceOptions | None = None) -> PageSource:
    """Open the source that `spec` names; raises `DataError` if there is none."""
    chosen = options or SourceOptions()
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path, chosen)
    if path.is_file() and path.suffix in INDEX_SUFFIXES:
        return IndexSource(path, chosen.image_root)
    if path.is_file() and path.suffix == ".parquet":
        return ParquetSource(path, chosen.image_root, chosen.split)
    if spec.startswith(HUB_PREFIX) or (_HUB_NAME.fullmatch(spec) and not path.exists() and not path.suffix):
        # Imported late: it takes a second.
        from trainer.data.sources.huggingface import open_hub

        name = spec.removeprefix(HUB_PREFIX)
        return open_hub(name, chosen.config, chosen.revision, chosen.split, streaming=chosen.streaming)
    # A pattern of names is not an existing file.
    if spec.endswith(".tar") and (path.is_file() or "{" in spec or is_url(spec)):
        return WebDatasetSource(spec, chosen.split)
    raise DataError(DataCode.SOURCE_MISSING, f"there is no source {spec!r}", _REMEDY)


def _open_folder(folder: Path, options: SourceOptions) -> PageSource:
    if any((folder / name).is_file() for name in SAVED_NAMES):
        from trainer.data.sources.huggingface import open_saved

        return open_saved(folder, options.split)
    index = find_index(folder)
    if index is not None:
        return IndexSource(index, options.image_root)
    if next(folder.rglob("*.parquet"), None) is not None:
        return ParquetSource(folder, options.image_root, options.split)
    if next(folder.rglob("*.tar"), None) is not None:
        return WebDatasetSource(str(folder), options.split)
    return FolderSource(folder)
