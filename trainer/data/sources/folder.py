"""Images in a folder with texts of the same name.

`scan-7.png` goes with `scan-7.txt` (or `scan-7.gt.txt`), or `scan-7.json` with an object whose keys are columns, or
both. Lines of print as OCRopus and kraken cut them, `7.bin.png` and `7.nrm.png`, go with `7.gt.txt`. A text without an
image is a row too: `prepare --convert-to-images` draws it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.images.formats import SUFFIXES, FileFormat
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.files import FolderFiles, decoded, list_files, read_inside
from trainer.data.sources.index import parse_object
from trainer.data.sources.listed import ListedSource
from trainer.data.sources.protocol import IMAGE_COLUMN, SPLIT_COLUMN, TEXT_COLUMN, Row
from trainer.data.sources.splits import split_of_folders

IMAGE_SUFFIXES: Final = tuple(
    suffix for file_format, suffixes in SUFFIXES.items() if file_format is not FileFormat.PDF for suffix in suffixes
)
TEXT_SUFFIXES: Final = (".gt.txt", ".txt", ".json")
_LINE_KINDS: Final = (".bin", ".nrm", ".dew", ".raw", ".gray", ".color")
"""Come before the suffix of a line's image: black and white, flattened, and so on."""
_SHOWN_FILES: Final = 3


@dataclass(frozen=True, slots=True)
class PagePair:
    """One row: its name, its files by `image` or suffix, and the name that they share where several images do."""

    name: str
    files: Mapping[str, Path]
    group: str = ""


class FolderSource(ListedSource[PagePair]):
    """Images and texts of the same name, in order of names, including subfolders.

    Attributes:
        columns: of all rows.
        passed_over: files that are neither images nor texts.
    """

    def __init__(self, folder: Path, files: FolderFiles | None = None, encoding: str | None = None) -> None:
        """Find the files.

        Args:
            folder: the source.
            files: of it, if they were listed already.
            encoding: of texts without a byte order mark; UTF-8 by default.

        Raises:
            DataError: there are no images or texts, or only indices could name the texts.
        """
        self._encoding = encoding
        found = files or list_files(folder)
        pairs = find_pairs(found)
        super().__init__(folder, pairs)
        if not pairs:
            raise DataError(
                DataCode.SOURCE_EMPTY,
                f"{folder} holds no images and no texts",
                f"put {', '.join(IMAGE_SUFFIXES)} files there, each with a .txt or .json of the same name",
            )
        self.passed_over = found.other_than(file for pair in pairs for file in pair.files.values())
        tables = found.with_suffix(".csv", ".tsv", ".jsonl", ".ndjson")
        if tables and all(not pair.files.keys() - {IMAGE_COLUMN} for pair in pairs):
            named = ", ".join(file.relative_to(folder).as_posix() for file in tables[:_SHOWN_FILES])
            raise DataError(
                DataCode.SOURCE_AMBIGUOUS,
                f"the images in {folder} have no texts of the same name; there is {named}",
                f"give the file that names images and texts, such as {tables[0]}",
            )
        rows = (row for row in self.read_shard(self.shards[0]) if isinstance(row, Row))
        first = {key: None for row in rows for key in row.fields}
        splits = {SPLIT_COLUMN: None} if any(split_of_folders(pair.name) for pair in pairs) else {}
        self.columns = tuple({IMAGE_COLUMN: None, TEXT_COLUMN: None, **splits, **first})

    def row(self, number: int, entry: PagePair) -> Row:
        """See `ListedSource`."""
        fields: dict[str, Any] = {}
        if ".json" in entry.files:
            fields.update(parse_object(self._read(entry.files[".json"], None)))
        for suffix in (".txt", ".gt.txt"):
            if suffix in entry.files:
                fields[TEXT_COLUMN] = self._read(entry.files[suffix], self._encoding)
        if IMAGE_COLUMN in entry.files:
            fields[IMAGE_COLUMN] = str(entry.files[IMAGE_COLUMN].relative_to(self._folder))
        split = split_of_folders(entry.name)
        return Row(number, entry.name, {**({SPLIT_COLUMN: split} if split else {}), **fields}, group=entry.group)

    def entry_name(self, entry: PagePair) -> str:
        """See `ListedSource`."""
        return entry.name

    def files(self, entry: PagePair) -> Iterable[Path]:
        """See `ListedSource`."""
        return entry.files.values()

    def _read(self, file: Path, encoding: str | None) -> str:
        try:
            return decoded(read_inside(self._folder, file.relative_to(self._folder)), encoding)
        except UnicodeDecodeError as error:
            advice = "; for texts of another encoding, such as cp1252, see --encoding" if not encoding else ""
            raise RowError(RowCode.ROW_UNREADABLE, f"{file.name}: it is not {encoding or 'UTF-8'}{advice}") from error


def find_pairs(found: FolderFiles) -> list[PagePair]:
    """Images with the texts of their names, and texts without an image, in order of names."""
    texts: dict[str, dict[str, Path]] = {}
    images: list[tuple[str, str, Path]] = []
    for name, file in zip(found.names(), found.files, strict=True):
        kind = next((suffix for suffix in TEXT_SUFFIXES if name.lower().endswith(suffix)), None)
        if kind:
            stem = name[: -len(kind)]
            # `a.txt` and `a.TXT` are two files: neither may hide the other.
            key = next(key for key in (_composed(stem), stem, name) if kind not in texts.get(key, ()))
            texts.setdefault(key, {})[kind] = file
        elif file.suffix.lower() in IMAGE_SUFFIXES:
            images.append((name, _composed(name[: -len(file.suffix)]), file))
    stems = [_stem_of_text(stem, texts) for _, stem, _ in images]
    shared = Counter(stems)
    pairs = [
        PagePair(name, {IMAGE_COLUMN: file, **texts.get(stem, {})}, stem if shared[stem] > 1 else "")
        for (name, _, file), stem in zip(images, stems, strict=True)
    ]
    pairs += [
        PagePair(next(iter(files.values())).relative_to(found.root).as_posix(), files)
        for stem, files in texts.items()
        if stem not in shared
    ]
    return sorted(pairs, key=lambda pair: pair.name)


def _composed(stem: str) -> str:
    """A name as most systems write it: a Mac's archives have accents apart from their letters."""
    return unicodedata.normalize("NFC", stem)


def _stem_of_text(stem: str, texts: Mapping[str, Mapping[str, Path]]) -> str:
    """The name that an image shares with its text."""
    if stem in texts:
        return stem
    shorter = next((stem[: -len(kind)] for kind in _LINE_KINDS if stem.endswith(kind)), stem)
    return shorter if ".gt.txt" in texts.get(shorter, {}) else stem
