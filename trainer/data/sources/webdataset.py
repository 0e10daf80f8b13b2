"""WebDataset shards: tar archives, local or over HTTP, whose members of one key make a row.

Members whose names are the same up to the first dot share a key: `0007.png`, `0007.txt`, `0007.json`. Archives are read
front to back without a seek, so an HTTP response is read as it arrives. Uses the standard library, as the
`webdataset` package imports torch, reaches HTTP through a `curl` program and runs what follows `pipe:` in a name.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.files import list_files, require_inside
from trainer.data.sources.folder import IMAGE_SUFFIXES
from trainer.data.sources.index import parse_object
from trainer.data.sources.protocol import IMAGE_COLUMN, IMAGES_COLUMN, SPLIT_COLUMN, TEXT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint
from trainer.data.sources.splits import split_named, split_of_folders

ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
TEXT_MEMBERS: Final = ("txt", "text", "gt.txt")
HTTP_TIMEOUT_S: Final = 60.0
HTTP_TRIES: Final = 4
HTTP_PAUSE_S: Final = 1.0
"""Pause before the second try; doubled before each further one."""
LARGEST_MEMBER_BYTES: Final = 200_000_000
_BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")


class WebDatasetSource(ShardedSource):
    """Rows of tar shards, in the order of their names."""

    image_root = None

    def __init__(self, spec: str, split: str | None = None) -> None:
        """Find the shards.

        Args:
            spec: a shard's path or http URL, with `{000..127}` for several; or a folder of shards.
            split: skip shards named for another split.

        Raises:
            DataError: there are no shards.
        """
        folder = Path(spec)
        self._root = folder if folder.is_dir() else None
        names = expand_braces(spec)
        if folder.is_dir():
            archives = list_files(folder).with_suffix(*ARCHIVE_SUFFIXES)
            require_inside(folder, archives)
            names = list(map(str, archives))
        missing = [name for name in names if not is_url(name) and not Path(name).is_file()]
        if missing or not names:
            raise DataError(
                DataCode.SOURCE_MISSING, f"there is no shard {missing[0] if missing else spec}", "check the name"
            )
        self._archives = [name for name in names if split is None or self._split_of(name) in {None, split}]
        if not self._archives:
            raise DataError(DataCode.SOURCE_EMPTY, f"{spec} has no shard of {split}", "choose another split")
        self.name = folder.resolve().name if not is_url(spec) else spec.rpartition("/")[2]

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Shards."""
        return [SourceShard(place) for place in range(len(self._archives))]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the first rows; others may have others."""
        found: dict[str, None] = {}
        fault = ""
        for number, row in enumerate(self.read_shard(SourceShard(0))):
            found.update(dict.fromkeys(row.fields) if isinstance(row, Row) else {})
            if number == 8:
                break
            if isinstance(row, BrokenRow):
                fault = fault or row.reason
        if not found:
            raise DataError(
                DataCode.SOURCE_EMPTY,
                f"{self._archives[0]} holds no row that can be read: {fault or 'it has no members'}",
                "check that it is a tar whose members of one row share a name up to the first dot",
            )
        # Whether there are splits is a matter of all shards, not of the first rows of the first one.
        return tuple({**found, **({SPLIT_COLUMN: None} if any(map(self._split_of, self._archives)) else {})})

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`; rows are numbered within their shard."""
        archive = self._archives[shard.place]
        short = _short(archive)
        split = self._split_of(archive)
        number = 0
        for key, members in _grouped(_members(archive)):
            number += 1
            name = f"{short}:{key}"
            if isinstance(members, RowError):
                yield BrokenRow(number, name, members.code, members.reason)
                continue
            try:
                fields = _fields(members)
            except RowError as error:
                yield BrokenRow(number, name, error.code, error.reason)
                continue
            yield Row(number, name, {**({SPLIT_COLUMN: split} if split else {}), **fields})

    def _split_of(self, archive: str) -> str | None:
        """The split that a shard is named for, or one of its folders."""
        within = Path(archive).relative_to(self._root).as_posix() if self._root is not None else _short(archive)
        return split_named(_short(archive)) or split_of_folders(within)

    def fingerprint(self) -> str:
        """See `PageSource`; of URLs, their names and what the server says of each."""
        local = [Path(shard) for shard in self._archives if not is_url(shard)]
        digest = hashlib.sha256(files_fingerprint(local, local[0].parent if local else Path()).encode())
        for shard in self._archives:
            if is_url(shard):
                digest.update(f"{shard}\0{_version(shard)}\n".encode())
        return digest.hexdigest()


def _short(shard: str) -> str:
    return shard.rpartition("/")[2]


def is_url(name: str) -> bool:
    """Whether a name is an HTTP address."""
    return name.startswith(("http://", "https://"))


def expand_braces(spec: str) -> list[str]:
    """Expand every `{000..127}` in a name, keeping leading zeros."""
    match = _BRACES.search(spec)
    if match is None:
        return [spec]
    first, last = match[1], match[2]
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in expand_braces(spec[: match.start()] + number + spec[match.end() :])]


def _members(shard: str) -> Iterator[tuple[str, bytes] | RowError]:
    """Files of a shard; where it breaks off, the reason."""
    try:
        with _opened(shard) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for info in archive:
                # Links and devices refer to files outside the archive.
                if info.isreg():
                    yield info.name, _read(archive, info)
                # The list of past members would grow for as long as the shard is read.
                archive.members = []  # type: ignore[attr-defined] # documented nowhere, kept since Python 2
    except (tarfile.TarError, EOFError, OSError, http.client.HTTPException) as error:
        yield RowError(RowCode.ROW_UNREADABLE, f"the shard breaks off here: {_reason(error)}")


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info) if info.size <= LARGEST_MEMBER_BYTES else None
    if file is None:
        return b""
    data = file.read()
    if len(data) < info.size:
        raise EOFError(f"{info.name} is cut off")
    return data


def _grouped(
    members: Iterator[tuple[str, bytes] | RowError],
) -> Iterator[tuple[str, dict[str, bytes] | RowError]]:
    """Members by key; those of one key are adjacent. Rows whose keys are not their own are errors, one for each."""
    key = ""
    held: list[tuple[str, bytes]] = []
    for member in members:
        if isinstance(member, RowError):
            # The current row is incomplete.
            yield key or "start", member
            return
        name, data = member
        folder, _, file = name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if not dot or not stem:
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key and held:
            yield from _settled(key, held)
            held = []
        key = this
        held.append((suffix.lower(), data))
    if held:
        yield from _settled(key, held)


def _settled(key: str, held: list[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes] | RowError]]:
    """The row of a key, or an error for each of the rows that share it."""
    suffixes = [suffix for suffix, _ in held]
    if any(map(_is_dotted, suffixes)):
        for stem in dict.fromkeys(suffix.rpartition(".")[0] for suffix in suffixes):
            name = f"{key}.{stem}" if stem else key
            reason = f"its name {name} has a dot, and only what is before the first dot is its key: rename it"
            yield name, RowError(RowCode.ROW_UNREADABLE, reason)
    elif len(set(suffixes)) < len(suffixes):
        # As many rows as the suffix that comes most often.
        for _ in range(max(map(suffixes.count, suffixes))):
            yield key, RowError(RowCode.ROW_UNREADABLE, f"the key {key} comes more than once: give each row its own")
    else:
        yield key, dict(held)


def _is_dotted(suffix: str) -> bool:
    """Whether a suffix is none, but begins with a part of the name: `2024.03.01.png` is not a part of `2024`."""
    before, _, last = suffix.rpartition(".")
    if suffix in TEXT_MEMBERS or not before:
        return False
    is_image = f".{last}" in IMAGE_SUFFIXES
    return (is_image and not before.isdigit()) or last in (*TEXT_MEMBERS, "json")


def _fields(members: dict[str, bytes]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    images = sorted(
        (suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES),
        key=lambda suffix: [int(part) if part.isdigit() else 0 for part in suffix.split(".")],
    )
    if "json" in members:
        fields.update(parse_object(_decoded(members["json"])))
    for name in TEXT_MEMBERS:
        if name in members:
            fields[TEXT_COLUMN] = _decoded(members[name])
    if len(images) > 1 or (images and images[0][0].isdigit()):
        fields[IMAGES_COLUMN] = [members[suffix] for suffix in images]
    elif images:
        fields[IMAGE_COLUMN] = members[images[0]]
    return fields


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(RowCode.TEXT_NOT_TEXT, "a text is not UTF-8") from error


@contextmanager
def _opened(shard: str) -> Iterator[IO[bytes]]:
    if not is_url(shard):
        with Path(shard).open("rb") as file:
            yield file
        return
    with _requested(shard, "GET") as answer:
        yield answer


def _requested(url: str, method: str) -> Any:
    """Request a URL, with retries; 4xx is final."""
    request = urllib.request.Request(url, method=method)  # noqa: S310 - `is_url` has let HTTP through alone
    pause_s = HTTP_PAUSE_S
    for attempt in range(HTTP_TRIES):
        try:
            return urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S)  # noqa: S310 - see above  # nosec B310
        except OSError as error:
            is_final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if is_final or attempt == HTTP_TRIES - 1:
                raise
            time.sleep(pause_s)
            pause_s *= 2
    raise AssertionError("the last try returns or raises")


def _version(url: str) -> str:
    try:
        with _requested(url, "HEAD") as answer:
            names = ("ETag", "Last-Modified", "Content-Length")
            return json.dumps([answer.headers.get(name) for name in names])
    except OSError as error:
        raise DataError(
            DataCode.SOURCE_MISSING, f"{url} cannot be reached: {_reason(error)}", "check the address"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
