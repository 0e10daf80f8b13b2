"""From a source's rows to samples: images decoded, text checked, broken rows left out.

Training, evaluation and `prepare` all read sources this way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.data.errors import RowError
from trainer.data.sources.columns import Columns, images_of, row_split, text_of
from trainer.data.sources.images import PageImage
from trainer.data.sources.protocol import WHOLE, BrokenRow, PageSource, Part, Row
from trainer.data.sources.rejected_rows import RejectedRows


@dataclass(frozen=True, slots=True)
class PageSample:
    """Images and the text to produce from them.

    Attributes:
        number: the row's number.
        name: where that row is.
        images: one, or all pages of a longer document.
        text: NFC, line feeds only, never empty.
        split: the split that the source names, if it names one.
        group: samples of one group belong to one split; empty where content alone decides.
    """

    number: int
    name: str
    images: tuple[PageImage, ...]
    text: str
    split: str | None = None
    group: str = ""


def read_samples(
    source: PageSource,
    columns: Columns,
    rejected: RejectedRows,
    part: Part = WHOLE,
    start: int = 0,
    seed: int | None = None,
    split: str | None = None,
) -> Iterator[PageSample]:
    """Read samples from a source.

    Args:
        source: where rows come from.
        columns: wanted columns; missing names are resolved here.
        rejected: gets every row that is left out.
        part: which rows.
        start: rows to skip first.
        seed: shuffles.
        split: only rows of this split; None for all.

    Yields:
        Samples.
    """
    settled = columns.resolved(source.columns)
    for row in source.rows(part, start, seed):
        if isinstance(row, BrokenRow):
            rejected.skip(row)
            continue
        try:
            if split is not None and row_split(row, settled) != split:
                continue
            sample = sample_of(row, settled, source)
        except RowError as error:
            rejected.skip(BrokenRow(row.number, row.name, error.code, error.reason))
            continue
        rejected.take()
        yield sample


def sample_of(row: Row, columns: Columns, source: PageSource) -> PageSample:
    """Make a sample of one row, with resolved columns; raises `RowError` if the row cannot be used."""
    text = text_of(row, str(columns.text), source.image_root, is_file=columns.text_is_file)
    images = images_of(row, columns, source.image_root)
    return PageSample(row.number, row.name, images, text, row_split(row, columns), row.group)
