"""Pages whose texts were transcribed with a tool: PAGE-XML, ALTO or hOCR, with the images that they are about.

One file a format says how it is read; here are whole pages and single lines cut from them, and the search for images.
A page of which some lines have no text is refused: it would teach a model to leave lines out.
"""

from __future__ import annotations

import io
import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from lxml import etree
from PIL import Image, ImageDraw

from shared.images.errors import ImageError
from shared.images.limits import ImageLimits
from shared.images.pixels import SIDEWAYS, orientation_of
from shared.images.raster import open_raster
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.files import FolderFiles, list_files, read_inside
from trainer.data.sources.folder import IMAGE_SUFFIXES
from trainer.data.sources.images import encode_png
from trainer.data.sources.protocol import IMAGE_COLUMN, SPLIT_COLUMN, TEXT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint
from trainer.data.sources.splits import split_of_folders

Point = tuple[float, float]
SIZE_TOLERANCE_PX: Final = 2
"""Tools round a page's size."""
MAX_OUTSIDE_SHARE: Final = 0.05
"""How far a line's outline may leave its image, as a share of the longer side: people draw past the edge of a page."""


class Level(StrEnum):
    """What a row of transcribed pages is."""

    PAGE = "page"
    LINE = "line"


@dataclass(frozen=True, slots=True)
class TranscribedLine:
    """A line: its text, empty where it was not transcribed, and the outline in pixels of the page; () if unknown."""

    text: str
    outline: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class TranscribedPage:
    """A page as a tool wrote it.

    Attributes:
        image: the image's name or path, as the file has it; empty where it names none.
        size: width and height that the outlines are about, in pixels or another unit; None if unknown.
        blocks: lines in reading order, by region.
    """

    image: str
    size: tuple[float, float] | None
    blocks: tuple[tuple[TranscribedLine, ...], ...]

    @property
    def lines(self) -> list[TranscribedLine]:
        """All lines in reading order."""
        return [line for block in self.blocks for line in block]

    @property
    def text(self) -> str:
        """The lines, and a blank line between regions."""
        return "\n\n".join("\n".join(line.text for line in block) for block in self.blocks if block)


@dataclass(frozen=True, slots=True)
class TranscriptionFormat:
    """A format: its name for people, and the function that reads a file's bytes; it raises `RowError`."""

    name: str
    read: Callable[[bytes], Sequence[TranscribedPage]]


class TranscriptionSource(ShardedSource):
    """Pages or lines of a folder of transcriptions, in order of their files' names.

    Attributes:
        name: of the folder.
        columns: image and text, and the split where folders name splits.
        passed_over: files that are neither transcriptions nor images.
    """

    def __init__(
        self,
        files: Sequence[Path],
        form: TranscriptionFormat,
        level: Level,
        found: FolderFiles,
        image_root: Path | None = None,
    ) -> None:
        """Take the files.

        Args:
            files: transcriptions, all of one format.
            form: their format.
            level: what a row is.
            found: all files of the source's folder.
            image_root: folder of the images; the source's by default.

        Raises:
            DataError: there are no transcriptions, or no such folder of images.
        """
        folder = found.root
        if image_root is not None and not image_root.is_dir():
            raise DataError(DataCode.SOURCE_MISSING, f"there is no folder {image_root}", "check --image-root")
        if not files:
            raise DataError(DataCode.SOURCE_EMPTY, f"{folder} holds no {form.name} file", "name another --source")
        self._folder, self._transcriptions, self._form, self._level = folder, list(files), form, level
        self._found = found
        self._image_root = image_root or folder
        self._pictures = list_files(image_root) if image_root is not None else found
        self.name = folder.resolve().name
        self.passed_over = found.other_than(files, IMAGE_SUFFIXES)
        has_splits = any(split_of_folders(file.relative_to(folder).as_posix()) for file in files)
        self.columns = (IMAGE_COLUMN, TEXT_COLUMN, *((SPLIT_COLUMN,) if has_splits else ()))

    @property
    def image_root(self) -> Path:
        """The folder of the images."""
        return self._image_root

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Files; how many rows one has is only known after reading."""
        return [SourceShard(place) for place in range(len(self._transcriptions))]

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`; rows are numbered within their file."""
        file = self._transcriptions[shard.place]
        place = file.relative_to(self._folder).as_posix()
        try:
            pages = self._form.read(read_inside(self._folder, place))
        except RowError as error:
            yield BrokenRow(1, place, error.code, error.reason)
            return
        number = 0
        for index, page in enumerate(pages, 1):
            name = place if len(pages) == 1 else f"{place} page {index}"
            for row in self._rows_of_page(file, page, name):
                number += 1
                yield self._row(number, *row, place, name)
        if not number:
            yield BrokenRow(1, place, RowCode.TEXT_MISSING, "it has no page")

    def fingerprint(self) -> str:
        """See `PageSource`; of transcriptions and images."""
        images = self._pictures.with_suffix(*IMAGE_SUFFIXES)
        if self._pictures is self._found:
            return files_fingerprint([*self._transcriptions, *images], self._folder)
        own = files_fingerprint(self._transcriptions, self._folder)
        return f"{own}-{files_fingerprint(images, self._image_root)}"

    def _row(self, number: int, name: str, fields: dict[str, Any] | RowError, place: str, page: str) -> Row | BrokenRow:
        if isinstance(fields, RowError):
            return BrokenRow(number, name, fields.code, fields.reason)
        split = split_of_folders(place)
        extra = {SPLIT_COLUMN: split} if split else {}
        return Row(number, name, {**extra, **fields}, group=page if self._level is Level.LINE else "")

    def _rows_of_page(
        self, file: Path, page: TranscribedPage, name: str
    ) -> Iterator[tuple[str, dict[str, Any] | RowError]]:
        """Name, and fields or the reason why there are none, of the rows of a page."""
        try:
            image = self._find_image(file, page)
            if self._level is Level.PAGE:
                yield name, {IMAGE_COLUMN: image, TEXT_COLUMN: _whole_text(page)}
                return
            cutter = _Cutter(read_inside(self._image_root, image), page.size)
        except RowError as error:
            yield name, error
            return
        if not page.lines:
            yield name, RowError(RowCode.TEXT_MISSING, "it has no line")
        for number, line in enumerate(page.lines, 1):
            try:
                yield f"{name} line {number}", {IMAGE_COLUMN: cutter.cut(line), TEXT_COLUMN: line.text}
            except RowError as error:
                yield f"{name} line {number}", error

    def _find_image(self, file: Path, page: TranscribedPage) -> str:
        """Path of a page's image, relative to the folder of images.

        Tools move files: the image is where the transcription says, or the one file of that name, or of the
        transcription's own name.
        """
        wanted = PurePosixPath(page.image.replace("\\", "/"))
        known = self._images
        inside = self._image_root.resolve()
        for folder in (file.parent, self._folder, file.parent.parent, self._image_root) if page.image else ():
            place = folder / wanted
            # Without another folder of images, one that is outside of the source is named as such when it is read.
            if place.is_file() and (self._pictures is self._found or place.resolve().is_relative_to(inside)):
                return os.path.relpath(place.resolve().parent / place.name, inside)
        for key in map(_same_name, (wanted.name, wanted.stem, _stem(file))):
            matches = known.get(key, [])
            if len(matches) > 1:
                raise RowError(RowCode.IMAGE_MISSING, f"{len(matches)} images are called {key}: leave one of them")
            if key and matches:
                return matches[0]
        raise RowError(RowCode.IMAGE_MISSING, f"there is no image {page.image or _stem(file)} in the folder")

    @cached_property
    def _images(self) -> dict[str, list[str]]:
        """Images by name, and by name without suffix."""
        known: dict[str, list[str]] = defaultdict(list)
        for name in self._pictures.names():
            path = PurePosixPath(_same_name(name))
            if path.suffix in IMAGE_SUFFIXES:
                for key in {path.name, path.stem}:
                    known[key].append(name)
        return known


class _Cutter:
    """Cuts lines out of a page's image, and fills what is outside of their outlines with paper."""

    def __init__(self, data: bytes, size: tuple[float, float] | None) -> None:
        try:
            seen = open_raster(data, ImageLimits()).read(1)
        except ImageError as error:
            raise RowError(RowCode.IMAGE_UNREADABLE, f"its image cannot be read: {error}") from error
        self._image = seen.image
        # What was transcribed are the file's pixels, which may be oblong.
        file_width, file_height = (side / by for side, by in zip(self._image.size, seen.stretch, strict=True))
        width, height = (max(side, 1.0) for side in size or (file_width, file_height))
        self._scale = self._image.width / width, self._image.height / height
        if abs(file_width * height / (file_height * width) - 1) * max(self._image.size) > SIZE_TOLERANCE_PX:
            raise RowError(
                RowCode.IMAGE_UNREADABLE,
                f"its image has {file_width:g} x {file_height:g} pixels, its lines are of {width:g} x "
                f"{height:g}: is it another image, or turned?",
            )
        with suppress(OSError), Image.open(io.BytesIO(data)) as file:
            turn = orientation_of(file)
            if turn != 1 and (turn not in SIDEWAYS or file_width == file_height):
                raise RowError(
                    RowCode.IMAGE_UNREADABLE,
                    "its EXIF data turns or mirrors it, and its lines may be of either way: save it upright",
                )

    def cut(self, line: TranscribedLine) -> bytes:
        """A PNG file of a line; raises `RowError` if it has no outline on the page."""
        outline = [(x * self._scale[0], y * self._scale[1]) for x, y in line.outline]
        if len(outline) < 3:
            raise RowError(RowCode.IMAGE_MISSING, "the line has no outline: prepare pages with --level page")
        width, height = self._image.size
        slack = MAX_OUTSIDE_SHARE * max(width, height)
        if any(not (-slack <= x <= width + slack and -slack <= y <= height + slack) for x, y in outline):
            raise RowError(RowCode.IMAGE_MISSING, "the line's outline leaves its image")
        xs, ys = zip(*outline, strict=True)
        box = (
            max(int(min(xs)), 0),
            max(int(min(ys)), 0),
            min(int(max(xs)) + 1, self._image.width),
            min(int(max(ys)) + 1, self._image.height),
        )
        if box[0] >= box[2] or box[1] >= box[3]:
            raise RowError(RowCode.IMAGE_MISSING, "the line's outline leaves its image")
        crop = self._image.crop(box)
        mask = Image.new("1", crop.size, 0)
        ImageDraw.Draw(mask).polygon([(x - box[0], y - box[1]) for x, y in outline], fill=1, outline=1)
        paper = tuple(int(value) for value in np.median(np.asarray(crop).reshape(-1, 3), axis=0))
        filled = Image.new("RGB", crop.size, paper)
        filled.paste(crop, mask=mask)
        return encode_png(filled)


def parse_xml(data: bytes) -> etree._Element:
    """Parse XML of any source: no entity is expanded and nothing is fetched; raises `RowError` if it is not XML."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False)
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise RowError(RowCode.ROW_UNREADABLE, f"it is not XML: {error}") from error


def root_name(data: bytes) -> str:
    """Name of the root element of a file that begins with these bytes; empty where there is none."""
    parser = etree.XMLPullParser(events=("start",), resolve_entities=False, no_network=True, load_dtd=False)
    # A file that is broken further on still tells what it is.
    with suppress(etree.XMLSyntaxError, ValueError):
        parser.feed(data)
        parser.close()
    with suppress(etree.XMLSyntaxError, ValueError):
        for _, element in parser.read_events():
            return etree.QName(element).localname
    return ""


def number_of(element: etree._Element, name: str, otherwise: float = 0.0) -> float:
    """An attribute as a finite number; `otherwise` where it is missing or is something else."""
    try:
        number = float(element.get(name, otherwise))
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise


def named(element: etree._Element, *names: str) -> list[etree._Element]:
    """Children of these names, whatever their namespace."""
    return [child for child in element if isinstance(child.tag, str) and etree.QName(child).localname in names]


def below(element: etree._Element, *names: str) -> Iterator[etree._Element]:
    """Descendants of these names, whatever their namespace, in order."""
    for child in element.iter():
        if isinstance(child.tag, str) and child is not element and etree.QName(child).localname in names:
            yield child


def points_of(text: str) -> tuple[Point, ...]:
    """Points of `x,y x,y` or `x y x y`; () if they are not finite numbers."""
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        return ()
    if not all(map(math.isfinite, numbers)):
        return ()
    return tuple(zip(numbers[::2], numbers[1::2], strict=False))


def rectangle(x: float, y: float, width: float, height: float) -> tuple[Point, ...]:
    """Outline of a box."""
    return ((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def _same_name(name: str) -> str:
    """A name without what file systems change: capitals, and accents apart from their letters on a Mac."""
    return unicodedata.normalize("NFC", name).lower()


def _whole_text(page: TranscribedPage) -> str:
    lines = page.lines
    empty = sum(not line.text.strip() for line in lines)
    if not lines:
        raise RowError(RowCode.TEXT_MISSING, "it has no line with a text")
    if empty:
        raise RowError(
            RowCode.TEXT_MISSING,
            f"{empty} of its {len(lines)} lines have no text: transcribe them, or use --level line",
        )
    return page.text


def _stem(file: Path) -> str:
    """A transcription's name without any suffix that tools add."""
    name = file.name.lower()
    for suffix in (".xml", ".html", ".htm", ".xhtml", ".hocr", ".page", ".alto"):
        name = name.removesuffix(suffix)
    return name
