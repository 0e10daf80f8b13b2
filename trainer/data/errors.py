"""Every error of data, with its code and what to do about it.

A `DataError` ends a run before it starts or without leaving anything half done. A `RowError` concerns one
row of a source; it is reported by number and reason, and the row is left out. Codes are stable: programs may rely on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class DataCode(StrEnum):
    """Why data cannot be used or written."""

    SOURCE_MISSING = "source_missing"
    SOURCE_UNREADABLE = "source_unreadable"
    SOURCE_EMPTY = "source_empty"
    SOURCE_AMBIGUOUS = "source_ambiguous"
    COLUMN_MISSING = "column_missing"
    OPTIONS_CONFLICT = "options_conflict"
    TOO_MANY_BROKEN_ROWS = "too_many_broken_rows"
    ROWS_LOST = "rows_lost"
    SPLIT_EMPTY = "split_empty"
    FONTS_MISSING = "fonts_missing"
    SHAPING_MISSING = "shaping_missing"
    OUTPUT_EXISTS = "output_exists"
    OUTPUT_BUSY = "output_busy"
    OUTPUT_UNWRITABLE = "output_unwritable"
    WORKER_LOST = "worker_lost"
    RESUME_MISMATCH = "resume_mismatch"
    DISK_FULL = "disk_full"
    SET_CORRUPT = "set_corrupt"


class RowCode(StrEnum):
    """Why a row is left out."""

    ROW_UNREADABLE = "row_unreadable"
    IMAGE_MISSING = "image_missing"
    IMAGE_OUTSIDE = "image_outside"
    IMAGE_REMOTE = "image_remote"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_FORMAT = "image_format"
    IMAGE_PIXELS = "image_pixels"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_SEVERAL = "image_several"
    IMAGE_SEVERAL_FRAMES = "image_several_frames"
    TEXT_MISSING = "text_missing"
    TEXT_EMPTY = "text_empty"
    TEXT_NOT_TEXT = "text_not_text"
    TEXT_UNTRUSTED = "text_untrusted"
    CHAT_INVALID = "chat_invalid"
    SPLIT_UNKNOWN = "split_unknown"
    GLYPH_MISSING = "glyph_missing"
    TOO_MANY_PAGES = "too_many_pages"
    DUPLICATE_ACROSS_SPLITS = "duplicate_across_splits"
    NEAR_DUPLICATE_ACROSS_SPLITS = "near_duplicate_across_splits"


class DataError(Exception):
    """Data that cannot be used or written: why (a stable `code`), and the `remedy`.

    `details` are further lines of the message, such as the rows concerned.
    """

    def __init__(self, code: DataCode, message: str, remedy: str, details: Sequence[object] = ()) -> None:
        super().__init__("\n  ".join([f"{message}; {remedy} [{code}]", *map(str, details)]))
        self.code = code
        self.remedy = remedy


class RowError(ValueError):
    """A row that cannot be used: a stable `code`, and the `reason` in words, without the row's number."""

    def __init__(self, code: RowCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
