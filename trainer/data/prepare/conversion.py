"""From a row of a source to the samples of a prepared set; this work is shared among worker processes.

The same row gives the same samples in any process and at any position.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Protocol

from shared.contract.processors import usable_processors
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.likeness import PageLikeness, likeness_of
from trainer.data.sources.columns import Columns, images_of, row_split, text_of
from trainer.data.sources.images import PageImage
from trainer.data.sources.protocol import PROMPT_COLUMN, BrokenRow, Row
from trainer.data.sources.splits import group_key, image_key, text_key

AHEAD: Final = 4
"""Rows queued for each worker: enough to keep it busy, few enough to fit in memory."""


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample of a prepared set.

    Attributes:
        row: the row's number in the source.
        page: which page of the row's text, from 1, where it was drawn on several; else 1.
        name: where the row is.
        images: one, or all pages that the text is to be produced from.
        text: the text to produce.
        split: the split that the source names, if it does.
        group: key of the content that decides the split; the same for all samples of a row.
        fonts: faces that the text was drawn with.
        prompt: what a chat asked for; empty where the source has no questions.
    """

    row: int
    page: int
    name: str
    images: tuple[PageImage, ...]
    text: str
    split: str | None
    group: bytes
    fonts: tuple[str, ...] = ()
    prompt: str = ""

    @property
    def likeness(self) -> PageLikeness:
        """By which a copy of the page is known again."""
        return likeness_of(self.text, [image.look for image in self.images])

    def content_keys(self) -> tuple[bytes, ...]:
        """Contents that may not be in two splits."""
        own_text = text_key(self.text)
        return (*(image_key(image.pixels_sha256) for image in self.images), *((own_text,) if own_text else ()))


class Converter(Protocol):
    """Makes samples of rows."""

    @property
    def several_images(self) -> bool:
        """Whether a sample may have several images."""

    def convert(self, row: Row) -> list[PreparedSample]:
        """Make the samples of a row, at least one; raises `RowError` if the row cannot be used."""


@dataclass(frozen=True, slots=True)
class ReadConverter:
    """Uses a row's own images.

    Attributes:
        columns: resolved names.
        image_root: folder that paths may not leave.
        several_images: rows may hold lists of images.
        groups_by_image: the images alone decide the split, for sources whose texts change.
    """

    columns: Columns
    image_root: Path | None
    several_images: bool = False
    groups_by_image: bool = False

    def convert(self, row: Row) -> list[PreparedSample]:
        """See `Converter`."""
        text = text_of(row, str(self.columns.text), self.image_root, is_file=self.columns.text_is_file)
        split = row_split(row, self.columns)
        images = images_of(row, self.columns, self.image_root, looks_for_print=True)
        if len(images) > 1 and not self.several_images:
            reason = f"it has {len(images)} images where the first row has one: prepare such rows as a set of their own"
            raise RowError(RowCode.IMAGE_SEVERAL, reason)
        of_images = hashlib.sha256(b"".join(image_key(each.pixels_sha256) for each in images)).digest()
        of_text = None if self.groups_by_image else text_key(text)
        group = group_key(row.group) or of_text or of_images
        prompt = row.fields.get(PROMPT_COLUMN)
        return [
            PreparedSample(
                row.number, 1, row.name, images, text, split, group, prompt=prompt if isinstance(prompt, str) else ""
            )
        ]


Outcome = list[PreparedSample] | BrokenRow


def convert_rows(rows: Iterable[Row | BrokenRow], converter: Converter, workers: int) -> Generator[Outcome, None, None]:
    """Convert rows, in worker processes if `workers` is not 1.

    Args:
        rows: the rows.
        converter: makes samples of a row.
        workers: processes; 0 for one per usable processor, 1 to convert in this process.

    Yields:
        For each row, in order, its samples or why it is left out.

    Raises:
        DataError: a worker was killed.
    """
    workers = workers or usable_processors()
    if workers == 1:
        yield from (_convert(converter, row) for row in rows)
        return
    # A new interpreter: a fork would copy locks held by threads of the source's libraries.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(converter,))
    with pool:
        pending: deque[Future[Outcome] | BrokenRow] = deque()
        try:
            for row in rows:
                pending.append(row if isinstance(row, BrokenRow) else pool.submit(_convert_here, row))
                while len(pending) >= AHEAD * workers:
                    yield _settled(pending.popleft())
            while pending:
                yield _settled(pending.popleft())
        except BrokenExecutor as error:
            raise DataError(
                DataCode.WORKER_LOST,
                "a process that converts rows was killed, most likely because memory ran out",
                "repeat the command with fewer --workers: it continues where it stopped",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _settled(pending: Future[Outcome] | BrokenRow) -> Outcome:
    return pending if isinstance(pending, BrokenRow) else pending.result()


def _convert(converter: Converter, row: Row | BrokenRow) -> Outcome:
    if isinstance(row, BrokenRow):
        return row
    try:
        return converter.convert(row)
    except RowError as error:
        return BrokenRow(row.number, row.name, error.code, error.reason)


_of_this_worker: list[Converter] = []


def _start_worker(converter: Converter) -> None:
    _of_this_worker[:] = [converter]


def _convert_here(row: Row) -> Outcome:
    return _convert(_of_this_worker[0], row)
