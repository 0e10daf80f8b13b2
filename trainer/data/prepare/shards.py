"""Files of a prepared set: Parquet as the Hugging Face libraries write it, or WebDataset's tar archives.

Files are written and synced completely or not at all; the same samples give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.prepare.conversion import PreparedSample
from trainer.data.sources.protocol import IMAGE_COLUMN, IMAGES_COLUMN, PROMPT_COLUMN

GROUP_ROWS: Final = 32
"""Samples of a row group, which a reader must decode to get any of them."""
_IMAGE_TYPE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class SetFormat(StrEnum):
    """How a prepared set is stored."""

    PARQUET = "parquet"
    WEBDATASET = "webdataset"

    @property
    def suffix(self) -> str:
        """Of its files."""
        return ".parquet" if self is SetFormat.PARQUET else ".tar"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One finished file.

    Attributes:
        name: relative to the set's folder.
        split: what it holds.
        num_samples: how many.
        num_bytes: its size.
        sha256: of its bytes.
    """

    name: str
    split: str
    num_samples: int
    num_bytes: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """For the set's manifest."""
        return asdict(self)


class Shard(Protocol):
    """A file being written."""

    def add(self, sample: PreparedSample) -> None:
        """Write a sample."""

    def close(self) -> None:
        """Flush, and write the file's end."""

    def abandon(self) -> None:
        """Stop without finishing the file."""


class ParquetShard:
    """Rows with the column `image`, or `images` where a sample has several, as Hugging Face `datasets` stores them."""

    def __init__(self, file: BinaryIO, *, several_images: bool) -> None:
        self._several = several_images
        column = (IMAGES_COLUMN, pa.list_(_IMAGE_TYPE)) if several_images else (IMAGE_COLUMN, _IMAGE_TYPE)
        feature: dict[str, Any] = {"_type": "Image"}
        features: dict[str, Any] = {
            column[0]: {"_type": "List", "feature": feature} if several_images else feature,
            "text": _value("string"),
            "name": _value("string"),
            "row": _value("int64"),
            "page": _value("int32"),
            "image_sha256": {"_type": "List", "feature": _value("string")},
            "fonts": {"_type": "List", "feature": _value("string")},
            "prompt": _value("string"),
        }
        schema = pa.schema(
            [
                column,
                ("text", pa.string()),
                ("name", pa.string()),
                ("row", pa.int64()),
                ("page", pa.int32()),
                ("image_sha256", pa.list_(pa.string())),
                ("fonts", pa.list_(pa.string())),
                (PROMPT_COLUMN, pa.string()),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", write_statistics=False)
        self._held: list[dict[str, Any]] = []

    def add(self, sample: PreparedSample) -> None:
        """See `Shard`."""
        images = [{"bytes": image.data, "path": f"{_key(sample)}.{image.suffix}"} for image in sample.images]
        self._held.append(
            {
                **({IMAGES_COLUMN: images} if self._several else {IMAGE_COLUMN: images[0]}),
                "text": sample.text,
                "name": sample.name,
                "row": sample.row,
                "page": sample.page,
                "image_sha256": [image.pixels_sha256 for image in sample.images],
                "fonts": list(sample.fonts),
                PROMPT_COLUMN: sample.prompt,
            }
        )
        if len(self._held) == GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """See `Shard`."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """See `Shard`."""
        # Otherwise the library's destructor writes the file's end into a closed file.
        self._writer.is_open = False

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_pylist(self._held, schema=self._schema))
            self._held = []


class TarShard:
    """Members `KEY.png` (`KEY.0.png` and on in sets of several images), `KEY.txt` and `KEY.json`, sample by sample."""

    def __init__(self, file: BinaryIO, *, several_images: bool) -> None:
        self._several = several_images
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close

    def add(self, sample: PreparedSample) -> None:
        """See `Shard`."""
        key = _key(sample)
        for index, image in enumerate(sample.images):
            self._member(f"{key}.{index}.{image.suffix}" if self._several else f"{key}.{image.suffix}", image.data)
        self._member(f"{key}.txt", sample.text.encode())
        facts = {
            "name": sample.name,
            "row": sample.row,
            "page": sample.page,
            "image_sha256": [image.pixels_sha256 for image in sample.images],
            "fonts": list(sample.fonts),
            PROMPT_COLUMN: sample.prompt,
        }
        self._member(f"{key}.json", json.dumps(facts, ensure_ascii=False).encode(errors="replace"))

    def close(self) -> None:
        """See `Shard`."""
        self._tar.close()

    def abandon(self) -> None:
        """See `Shard`; a tar archive holds nothing back."""

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))


class ShardFile:
    """A shard being written to a file; `finish` syncs it and returns its record."""

    def __init__(self, folder: Path, name: str, split: str, form: SetFormat, *, several_images: bool) -> None:
        self._path, self._name, self._split = folder / name, name, split
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._count = 0
        self._shard: Shard = (
            ParquetShard(self._file, several_images=several_images)
            if form is SetFormat.PARQUET
            else TarShard(self._file, several_images=several_images)
        )

    def add(self, sample: PreparedSample) -> None:
        """Write a sample."""
        self._shard.add(sample)
        self._count += 1

    def finish(self) -> ShardRecord:
        """Close the file.

        Returns:
            What it holds.
        """
        self._shard.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardRecord(self._name, self._split, self._count, self._path.stat().st_size, digest)

    def close(self) -> None:
        """Close the file, finished or not; an unfinished one is deleted when the work continues."""
        self._shard.abandon()
        # A full disk has no room for what is still buffered either, and the error of the write is the one to tell.
        with suppress(OSError):
            self._file.close()


def rows_of_shard(path: Path) -> set[int]:
    """Numbers of the source's rows that a finished file holds, read from the file."""
    if path.suffix == SetFormat.PARQUET.suffix:
        return set(pq.read_table(path, columns=["row"])["row"].to_pylist())
    with tarfile.open(path) as archive:
        return {int(name.partition("-")[0]) for name in archive.getnames()}


def _key(sample: PreparedSample) -> str:
    return f"{sample.row:09d}-{sample.page:03d}"


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}
