"""Data sets of the Hugging Face libraries: saved to disk, or of the Hub, whole or streaming.

Images are passed as their stored bytes: they are checked and kept downstream, not decoded here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import datasets
import pyarrow as pa
from datasets.utils.file_utils import xopen

from trainer.data.errors import DataCode, DataError, RowCode
from trainer.data.sources.protocol import SPLIT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard
from trainer.data.sources.splits import of_split, split_named

SHARD_ROWS: Final = 64
_FAULTS: Final = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException, datasets.exceptions.DatasetsError,
)  # fmt: skip
"""What the library raises for a data set that cannot be had or read."""
_SCRIPT: Final = "scripts are no longer supported"


class HuggingFaceSource(ShardedSource):
    """Splits in sequence; a row's `split` is the one that it comes from."""

    image_root = None

    def __init__(self, name: str, splits: Mapping[str, Any]) -> None:
        """Wrap an opened `Dataset` or `IterableDataset` per split; raises `DataError` without any."""
        self.name = name
        self._splits = [(split, _undecoded(opened)) for split, opened in splits.items()]
        if not self._splits:
            raise DataError(DataCode.SOURCE_EMPTY, f"{name} has no splits", "check its name and configuration")
        self._shards: list[SourceShard] = []
        self._places: list[tuple[int, int]] = []
        number = 1
        for index, (_, opened) in enumerate(self._splits):
            if isinstance(opened, datasets.Dataset):
                for start in range(0, len(opened), SHARD_ROWS):
                    self._add(
                        (index, start), SourceShard(len(self._shards), number, min(SHARD_ROWS, len(opened) - start))
                    )
                    number += self._shards[-1].num_rows or 0
            else:
                for shard in range(opened.num_shards):
                    self._add((index, shard), SourceShard(len(self._shards)))
        has_split = any(split_named(split) for split, _ in self._splits)
        own = _column_names(self._splits[0][1])
        self.columns = (*own, *([SPLIT_COLUMN] if has_split and SPLIT_COLUMN not in own else []))

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Ranges of a data set on disk, or shards of a stream."""
        return self._shards

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`; rows of a stream are numbered within their shard."""
        index, place = self._places[shard.place]
        split, opened = self._splits[index]
        named = split_named(split)
        extra = {SPLIT_COLUMN: named} if named and SPLIT_COLUMN in self.columns else {}
        if isinstance(opened, datasets.Dataset):
            numbers = range(place, place + (shard.num_rows or 0))
            rows: Iterator[Any] = (_row_at(opened, number) for number in numbers)
        else:
            rows = _streamed(opened.shard(opened.num_shards, place))
        for number, fields in enumerate(rows, shard.first_number or 1):
            name = f"{split} row {number}" if shard.first_number else f"{split} shard {place} row {number}"
            if isinstance(fields, str):
                yield BrokenRow(number, name, RowCode.ROW_UNREADABLE, fields)
            else:
                yield Row(number, name, {**extra, **fields})

    def fingerprint(self) -> str:
        """See `PageSource`; what the library itself keys its caches by, for streams the revision's files."""
        digest = hashlib.sha256(self.name.encode())
        for split, opened in self._splits:
            is_stored = isinstance(opened, datasets.Dataset)
            state = opened._fingerprint if is_stored else f"{opened.num_shards}/{opened.info.version}"
            digest.update(f"\0{split}\0{state}".encode())
        return digest.hexdigest()

    def _add(self, place: tuple[int, int], shard: SourceShard) -> None:
        self._places.append(place)
        self._shards.append(shard)


def open_saved(folder: Path, split: str | None = None) -> HuggingFaceSource:
    """Open what `save_to_disk` has written; `split` skips other splits. Raises `DataError` if it cannot be read."""
    try:
        opened = datasets.load_from_disk(str(folder))
    except _FAULTS as error:
        raise DataError(
            DataCode.SOURCE_UNREADABLE, f"{folder} cannot be read: {_first_line(error)}", "save it again"
        ) from error
    return HuggingFaceSource(folder.resolve().name, _by_split(opened, split))


def open_hub(
    name: str, config: str | None, revision: str | None, split: str | None = None, *, streaming: bool
) -> HuggingFaceSource:
    """Open a data set of the Hub, or any path that `datasets.load_dataset` takes.

    `split` skips other splits; `streaming` reads without a copy on disk. Raises `DataError` if the data set does not
    exist or cannot be reached.
    """
    try:
        opened = datasets.load_dataset(name, config, revision=revision, streaming=streaming)
        # Columns of a stream are only known by reading its first row.
        return HuggingFaceSource(Path(name).name if Path(name).exists() else name, _by_split(opened, split))
    except _FAULTS as error:
        code, remedy = _advice(error)
        raise DataError(code, f"the data set {name} cannot be opened: {_cause(error)}", remedy) from error


def _advice(error: BaseException) -> tuple[DataCode, str]:
    """Code and remedy of a data set that cannot be opened."""
    if _SCRIPT in str(error):
        remedy = "a data set's code is never run: try --dataset-revision refs/convert/parquet"
        return DataCode.SOURCE_UNREADABLE, remedy
    if isinstance(error, datasets.exceptions.DatasetGenerationError | pa.ArrowException):
        return DataCode.SOURCE_UNREADABLE, "correct its files, or choose others with --dataset-config"
    return (
        DataCode.SOURCE_MISSING,
        "check its name, --dataset-config and the connection; for a private one set HF_TOKEN",
    )


def _by_split(opened: Any, split: str | None) -> dict[str, Any]:
    if isinstance(opened, dict):
        return {name: opened[name] for name in of_split(list(opened), split)}
    return {str(opened.split or "all"): opened}


def _undecoded(opened: Any) -> Any:
    """The data set with images as stored bytes."""
    if opened.features is None:
        return opened
    changed = {name: _undecoded_feature(feature) for name, feature in opened.features.items()}
    for name, feature in changed.items():
        if feature != opened.features[name]:
            opened = opened.cast_column(name, feature)
    return opened


def _undecoded_feature(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded_feature(feature.feature))
    return feature


def _column_names(opened: Any) -> list[str]:
    if opened.column_names is not None:
        return list(opened.column_names)
    return list(next(iter(opened), {}))


def _row_at(opened: Any, number: int) -> dict[str, Any] | str:
    try:
        return _with_bytes(opened[number])
    except _FAULTS as error:
        return _first_line(error)


def _streamed(stream: Any) -> Iterator[dict[str, Any] | str]:
    try:
        for fields in stream:
            try:
                yield _with_bytes(fields)
            except _FAULTS as error:
                yield _first_line(error)
    except _FAULTS as error:
        yield f"the stream breaks off here: {_first_line(error)}"


def _with_bytes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _loaded(value) for name, value in fields.items()}


def _loaded(value: Any) -> Any:
    """Bytes of images stored as the data set's own files: in its archive, repository or folder."""
    if isinstance(value, list):
        return [_loaded(each) for each in value]
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and value["bytes"] is None and value["path"]:
        with xopen(value["path"], "rb") as file:
            return {"bytes": file.read(), "path": value["path"]}
    return value


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first: the library wraps it."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
