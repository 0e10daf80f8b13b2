"""Resolve what a user typed to a source: a folder, a file, shards, or a data set of the Hub.

A folder is read as the one kind of source that it holds. Where it holds several, nothing is guessed: which of them was
meant decides what a model learns.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.data.errors import DataCode, DataError
from trainer.data.sources.chat import ChatSource, is_chat
from trainer.data.sources.files import SET_MANIFEST, FolderFiles, list_files
from trainer.data.sources.folder import FolderSource, find_pairs
from trainer.data.sources.index import INDEX_NAMES, INDEX_SUFFIXES, IndexSource, TableFormat
from trainer.data.sources.kinds import SourceKind
from trainer.data.sources.parquet import ParquetSource
from trainer.data.sources.protocol import IMAGE_COLUMN, PageSource
from trainer.data.sources.webdataset import ARCHIVE_SUFFIXES, WebDatasetSource, is_url

HUB_PREFIX: Final = "hf:"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB: Final = "hub"
SAVED: Final = "saved"
"""Kinds that no folder of files is: a data set of the Hub, and what `save_to_disk` wrote."""
_TRANSCRIBED: Final = (SourceKind.PAGE_XML, SourceKind.ALTO, SourceKind.HOCR)
_USERS: Final[Mapping[str, tuple[str, ...]]] = {
    "--image-root": (SourceKind.INDEX, SourceKind.PARQUET, *_TRANSCRIBED),
    "--dataset-config": (HUB,),
    "--dataset-revision": (HUB,),
    "--streaming": (HUB,),
    "--level": _TRANSCRIBED,
    "--dpi": (SourceKind.PDF,),
    "--delimiter": (SourceKind.INDEX,),
    "--encoding": (SourceKind.INDEX, SourceKind.IMAGES),
}
"""The kinds that an option is for."""
SAVED_NAMES: Final = ("dataset_dict.json", "state.json")
"""Files that Hugging Face's `save_to_disk` writes."""
HEAD_BYTES: Final = 65_536
"""Read of a file to tell its kind."""
_REMEDY: Final = (
    "give a folder, a .csv, .tsv, .jsonl, .json, .parquet, .pdf or .tar file, a URL of .tar shards, "
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
        kind: what a folder is to be read as; None for the one kind that it holds.
        level: what a row of transcribed pages is, `page` or `line`; None for `page`.
        dpi: resolution of pages of PDFs; None for the default.
        table: how an index is written.
    """

    image_root: Path | None = None
    config: str | None = None
    revision: str | None = None
    streaming: bool = False
    split: str | None = None
    kind: SourceKind | None = None
    level: str | None = None
    dpi: int | None = None
    table: TableFormat = field(default_factory=TableFormat)

    def refuse_unused(self, spec: str, kind: str) -> None:
        """Raise `DataError` for an option that a source of this kind would ignore."""
        given = {
            "--image-root": self.image_root,
            "--dataset-config": self.config,
            "--dataset-revision": self.revision,
            "--streaming": self.streaming,
            "--level": self.level,
            "--dpi": self.dpi,
            "--delimiter": self.table.delimiter,
            "--encoding": self.table.encoding,
        }
        unused = [flag for flag, value in given.items() if value and kind not in _USERS[flag]]
        if unused:
            raise DataError(
                DataCode.OPTIONS_CONFLICT,
                f"{' and '.join(unused)} would have no effect: {spec} is read as {kind}",
                "leave it out, or choose another kind with --source",
            )


def open_source(spec: str, options: SourceOptions | None = None) -> PageSource:
    """Open the source that `spec` names; raises `DataError` if there is none."""
    source = _open(spec, options or SourceOptions())
    return ChatSource(source) if is_chat(source.columns) else source


def _open(spec: str, options: SourceOptions) -> PageSource:
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path, options)
    # A pattern of names is not an existing file.
    if spec.endswith(ARCHIVE_SUFFIXES) and (path.is_file() or "{" in spec or is_url(spec)):
        options.refuse_unused(spec, SourceKind.WEBDATASET)
        return WebDatasetSource(spec, options.split)
    if path.is_file():
        return _open_file(path, options)
    if spec.startswith(HUB_PREFIX) or (_HUB_NAME.fullmatch(spec) and not path.suffix):
        return _open_hub(spec, options)
    raise DataError(DataCode.SOURCE_MISSING, f"there is no source {spec!r}", _near(path) or _REMEDY)


def _open_file(path: Path, options: SourceOptions) -> PageSource:
    suffix = path.suffix.lower()
    if suffix in INDEX_SUFFIXES:
        options.refuse_unused(str(path), SourceKind.INDEX)
        return IndexSource(path, options.image_root, options.table)
    if suffix == ".parquet":
        options.refuse_unused(str(path), SourceKind.PARQUET)
        return ParquetSource(path, options.image_root, options.split)
    if suffix == ".tar" or path.name.lower().endswith(ARCHIVE_SUFFIXES):
        options.refuse_unused(str(path), SourceKind.WEBDATASET)
        return WebDatasetSource(str(path), options.split)
    if suffix == ".pdf":
        options.refuse_unused(str(path), SourceKind.PDF)
        return _pdf_source(path, [path], None, options)
    raise DataError(DataCode.SOURCE_MISSING, f"{path} is a file that is no source ({suffix or 'no suffix'})", _REMEDY)


def _open_hub(spec: str, options: SourceOptions) -> PageSource:
    folder = Path(spec)
    if not spec.startswith(HUB_PREFIX) and folder.parent.is_dir():
        raise DataError(
            DataCode.SOURCE_MISSING,
            f"there is no folder {spec}, although there is {folder.parent}",
            f"{_near(folder) or 'check the name'}; for a data set of the Hub write {HUB_PREFIX}{spec}",
        )
    options.refuse_unused(spec, HUB)
    # Imported late: it takes a second.
    from trainer.data.sources.huggingface import open_hub

    name = spec.removeprefix(HUB_PREFIX)
    return open_hub(name, options.config, options.revision, options.split, streaming=options.streaming)


def _near(path: Path) -> str:
    """What a mistyped path may have meant; empty where nothing is like it."""
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f"did you mean {path.parent / near[0]}?" if near else ""


def _open_folder(folder: Path, options: SourceOptions) -> PageSource:
    if any((folder / name).is_file() for name in SAVED_NAMES):
        options.refuse_unused(str(folder), SAVED)
        from trainer.data.sources.huggingface import open_saved

        return open_saved(folder, options.split)
    found = list_files(folder)
    kinds = {options.kind} if options.kind else set(kinds_in(found))
    if not options.kind and (folder / SET_MANIFEST).is_file():
        kinds &= {SourceKind.PARQUET, SourceKind.WEBDATASET}
    if len(kinds) > 1:
        held = kinds_in(found)
        named = ", ".join(f"{kind} ({count} files)" for kind, count in sorted(held.items()))
        raise DataError(
            DataCode.SOURCE_AMBIGUOUS,
            f"{folder} holds several kinds of source: {named}",
            f"choose with --source {'|'.join(sorted(kinds))}, or move the others away",
        )
    kind = kinds.pop() if kinds else SourceKind.IMAGES
    options.refuse_unused(str(folder), kind)
    return _OPENERS[kind](folder, found, options)


def kinds_in(found: FolderFiles) -> dict[SourceKind, int]:
    """Kinds of source in a folder, with their numbers of files.

    Images count where texts share their names, or where there is nothing else: any kind may come with pictures.
    """
    counts = {kind: len(find(found)) for kind, find in _FINDERS.items()}
    kinds = {kind: count for kind, count in counts.items() if count}
    pairs = sum(len(pair.files) > 1 and IMAGE_COLUMN in pair.files for pair in find_pairs(found))
    if pairs and SourceKind.INDEX not in kinds:
        kinds[SourceKind.IMAGES] = pairs
    return kinds


def _find_indices(found: FolderFiles) -> list[Path]:
    """The folder's own index, or else those of the folders in it; the first usual name of each folder."""
    by_folder: dict[Path, Path] = {}
    for name in INDEX_NAMES:
        for file in found.files:
            if file.name.lower() == name:
                by_folder.setdefault(file.parent, file)
    top = by_folder.get(found.root)
    return [top] if top is not None else sorted(by_folder.values())


def _find_xml(found: FolderFiles, root: str) -> list[Path]:
    files = found.with_suffix(".xml")
    if not files:
        return []
    from trainer.data.sources.transcriptions import root_name

    roots = {file: root_name(_head(file)) for file in files}
    # One that says nothing is a damaged one of the others' kind: to be named, not passed over.
    return [file for file in files if roots[file] in {root, ""}] if root in roots.values() else []


def _find_hocr(found: FolderFiles) -> list[Path]:
    from trainer.data.sources.hocr import MARK, SUFFIXES

    return [file for file in found.with_suffix(*SUFFIXES) if MARK in _head(file)]


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except OSError:
        return b""


def _transcriptions(kind: SourceKind) -> Callable[[Path, FolderFiles, SourceOptions], PageSource]:
    def opened(_: Path, found: FolderFiles, options: SourceOptions) -> PageSource:
        # Imported late: lxml and numpy are of use for these kinds alone.
        from trainer.data.sources.alto import ALTO
        from trainer.data.sources.hocr import HOCR
        from trainer.data.sources.page_xml import PAGE_XML
        from trainer.data.sources.transcriptions import Level, TranscriptionSource

        forms = {SourceKind.PAGE_XML: PAGE_XML, SourceKind.ALTO: ALTO, SourceKind.HOCR: HOCR}
        level = Level(options.level or Level.PAGE)
        return TranscriptionSource(_FINDERS[kind](found), forms[kind], level, found, options.image_root)

    return opened


def _open_indices(folder: Path, found: FolderFiles, options: SourceOptions) -> PageSource:
    indices = _find_indices(found)
    if not indices:
        raise DataError(
            DataCode.SOURCE_EMPTY, f"{folder} holds no {', '.join(INDEX_NAMES)}", "name the index itself as the source"
        )
    source = IndexSource(indices, options.image_root, options.table, folder)
    named = [file for file in found.files if file.name.lower() in INDEX_NAMES and file not in indices]
    source.passed_over = {**found.passed_over, **({"other indices": len(named)} if named else {})}
    return source


def _pdf_source(path: Path, files: list[Path], found: FolderFiles | None, options: SourceOptions) -> PageSource:
    # Imported late: PDFium takes a moment.
    from trainer.data.sources.pdf import DEFAULT_DPI, PdfSource

    return PdfSource(path, files, options.dpi or DEFAULT_DPI, found)


_FINDERS: Final[dict[SourceKind, Callable[[FolderFiles], list[Path]]]] = {
    SourceKind.INDEX: _find_indices,
    SourceKind.PARQUET: lambda found: found.with_suffix(".parquet"),
    SourceKind.WEBDATASET: lambda found: found.with_suffix(*ARCHIVE_SUFFIXES),
    SourceKind.PAGE_XML: lambda found: _find_xml(found, "PcGts"),
    SourceKind.ALTO: lambda found: _find_xml(found, "alto"),
    SourceKind.HOCR: _find_hocr,
    SourceKind.PDF: lambda found: found.with_suffix(".pdf"),
}
"""Files of each kind; images with texts are found by their names."""
_OPENERS: Final[dict[SourceKind, Callable[[Path, FolderFiles, SourceOptions], PageSource]]] = {
    SourceKind.IMAGES: lambda folder, found, options: FolderSource(folder, found, options.table.encoding),
    SourceKind.INDEX: _open_indices,
    SourceKind.PARQUET: lambda folder, _, options: ParquetSource(folder, options.image_root, options.split),
    SourceKind.WEBDATASET: lambda folder, _, options: WebDatasetSource(str(folder), options.split),
    SourceKind.PAGE_XML: _transcriptions(SourceKind.PAGE_XML),
    SourceKind.ALTO: _transcriptions(SourceKind.ALTO),
    SourceKind.HOCR: _transcriptions(SourceKind.HOCR),
    SourceKind.PDF: lambda folder, found, options: _pdf_source(folder, found.with_suffix(".pdf"), found, options),
}
