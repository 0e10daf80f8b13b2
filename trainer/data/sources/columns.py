"""Which columns of a source are image, text to produce and text to draw, and whether a row's values are valid."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.encoded import decode_text, shown
from trainer.data.sources.files import decoded, read_inside
from trainer.data.sources.images import PageImage, check_image
from trainer.data.sources.protocol import IMAGES_COLUMN, SPLIT_COLUMN, PageSource, Row
from trainer.data.sources.splits import SPLITS, split_named

IMAGE_NAMES: Final = ("image", IMAGES_COLUMN, "file_name", "image_path", "path")
LONGEST_NAME: Final = 255
"""Maximum length of a file name in characters; anything longer is a text."""
TEXT_NAMES: Final = ("text", "transcription", "ground_truth", "answer", "markdown")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; None for the usual names.

    Attributes:
        image: the image, or a list of images of one sample.
        text: the text to produce.
        read: the text to read, which `--convert-to-images` draws; the text to produce where None.
        split: names each row's split.
        text_is_file: the text's column holds the name of a text file.
    """

    image: str | None = None
    text: str | None = None
    read: str | None = None
    split: str | None = None
    text_is_file: bool = False

    def resolved(self, available: Sequence[str], *, needs_image: bool = True) -> Columns:
        """Fill in every name from the source's columns; raises `DataError` if one is missing."""
        image = self._found("image", self.image, IMAGE_NAMES, available) if needs_image else None
        text = self._found("text", self.text, TEXT_NAMES, available)
        read = self._found("read", self.read or text, (), available)
        split = self.split
        if split is not None:
            self._found("split", split, (), available)
        elif SPLIT_COLUMN in available:
            split = SPLIT_COLUMN
        return Columns(image, text, read, split, self.text_is_file)

    @staticmethod
    def _found(role: str, wanted: str | None, usual: Sequence[str], available: Sequence[str]) -> str:
        if wanted in available:
            return str(wanted)
        if wanted is None:
            found = next((name for name in usual if name in available), None)
            if found is not None:
                return found
        near = difflib.get_close_matches(wanted or role, available, n=1)
        what = f"there is no column {wanted!r}" if wanted else f"no column is named {' or '.join(usual[:2])}"
        raise DataError(
            DataCode.COLUMN_MISSING,
            f"{what}; the source has {', '.join(available) or 'none'}",
            f"choose with --{role}-column NAME" + (f" (did you mean {near[0]}?)" if near else ""),
        )


def images_of(row: Row, columns: Columns, root: Path | None, *, looks_for_print: bool = False) -> tuple[PageImage, ...]:
    """The images of a row, decoded, at least one; raises `RowError` if one is missing or cannot be used.

    `root` is the folder that paths may not leave; None refuses paths. For `looks_for_print` see `check_image`.
    """
    value = row.fields.get(columns.image or "")
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise RowError(RowCode.IMAGE_MISSING, f"column {columns.image!r} is an empty list")
    files = (image_bytes(each, str(columns.image), root, row.folder) for each in values)
    return tuple(check_image(data, looks_for_print=looks_for_print) for data in files)


def holds_lists(source: PageSource, columns: Columns) -> bool:
    """Whether samples have several images, by the resolved column's name or else the source's first row."""
    if columns.image == IMAGES_COLUMN:
        return True
    first = next((row for row in source.rows() if isinstance(row, Row)), None)
    return first is not None and isinstance(first.fields.get(columns.image or ""), list | tuple)


def image_bytes(value: Any, column: str, root: Path | None, folder: str = "") -> bytes:
    """Bytes of one image, however the source stores it.

    Args:
        value: bytes, base64, a data URL, a path, or a mapping with one of them as `bytes`, `path` or `url`.
        column: its column, for the message.
        root: folder that paths may not leave.
        folder: below it; paths are relative to this one.

    Returns:
        The file's bytes.

    Raises:
        RowError: there is no image, it is named by a URL, or a path does not exist or is outside the folder.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if value is None or value == "":
        raise RowError(RowCode.IMAGE_MISSING, f"there is no image in column {column!r}")
    if not isinstance(value, str | Path):
        raise RowError(RowCode.IMAGE_MISSING, f"column {column!r} holds a {type(value).__name__}, no image and no path")
    data = decode_text(value) if isinstance(value, str) else None
    if data is not None:
        return data
    if root is None:
        raise RowError(
            RowCode.IMAGE_OUTSIDE, f"{shown(value)} is a path, and this source has no folder: give --image-root DIR"
        )
    return read_inside(root, value, folder)


def text_of(row: Row, column: str, root: Path | None = None, *, is_file: bool = False) -> str:
    """A text of a row, in Unicode NFC with line feeds, stripped.

    Args:
        row: the row.
        column: the text's column.
        root: folder that text files may not leave.
        is_file: the column holds a file's name.

    Returns:
        The text.

    Raises:
        RowError: it is missing, empty or cannot be encoded as UTF-8.
    """
    value = row.fields.get(column)
    if value is None:
        raise RowError(RowCode.TEXT_MISSING, f"there is no text in column {column!r}")
    if not isinstance(value, str):
        raise RowError(RowCode.TEXT_NOT_TEXT, f"column {column!r} holds a {type(value).__name__}")
    if is_file:
        value = _read_text(value, root, row.folder)
    elif root is not None and _is_text_file(value, root / row.folder):
        raise RowError(RowCode.TEXT_NOT_TEXT, f"{value} is the name of a text file: give --text-is-file to prepare")
    text = unicodedata.normalize("NFC", value.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text:
        raise RowError(RowCode.TEXT_EMPTY, f"the text in column {column!r} is empty")
    odd = next((character for character in text if _is_unusable(character)), None)
    if odd is not None:
        raise RowError(
            RowCode.TEXT_NOT_TEXT,
            f"the text holds U+{ord(odd):04X}: is the file UTF-8? See --encoding",
        )
    return text


def row_split(row: Row, columns: Columns) -> str | None:
    """The split that a row names; None where it names none. Raises `RowError` if it is not one of `SPLITS`.

    A row may have the usual column although the first ones, which decide a source's columns, do not.
    """
    column = columns.split or (SPLIT_COLUMN if SPLIT_COLUMN in row.fields else None)
    return split_of(row, column) if column is not None else None


def split_of(row: Row, column: str) -> str:
    """The split, one of `SPLITS`, in a row's column; raises `RowError` if it is not one."""
    value = row.fields.get(column)
    split = split_named(value) if isinstance(value, str) else None
    if split is None:
        raise RowError(RowCode.SPLIT_UNKNOWN, f"column {column!r} says {value!r}, not {', '.join(SPLITS)}")
    return split


def _is_unusable(character: str) -> bool:
    """Control characters, lone surrogates and replacements of undecodable bytes."""
    return unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t\f"


def _is_text_file(value: str, root: Path) -> bool:
    """Whether a text is only the name of its file: a model would silently learn names."""
    return len(value) <= LONGEST_NAME and value.endswith(".txt") and (root / value).is_file()


def _read_text(value: str, root: Path | None, folder: str) -> str:
    if root is None:
        raise RowError(RowCode.TEXT_MISSING, f"{value} is a path, and this source has no folder: give --image-root DIR")
    try:
        return decoded(read_inside(root, value, folder))
    except UnicodeDecodeError as error:
        raise RowError(RowCode.TEXT_NOT_TEXT, f"{value} is not UTF-8") from error
    except RowError as error:
        raise RowError(RowCode.TEXT_MISSING, error.reason) from error
