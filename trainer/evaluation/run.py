"""An evaluation, top to bottom: every reader reads every page, every reading is scored, tiers are summed up.

Knows neither the command line nor how results are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from trainer.evaluation.progress import Progress
from trainer.evaluation.provenance import current_date, machine, package_versions, source_commit
from trainer.evaluation.results import EvaluationResult, ReaderResult, SetRecord, is_adapter, is_base
from trainer.evaluation.samples import Sample, SampleSet
from trainer.evaluation.scores import PageScore, Reading, score_page, score_tier
from trainer.reading.protocol import Reader


@dataclass(frozen=True, slots=True)
class ScoredPage:
    """A page with what each reader made of it, in the readers' order."""

    sample: Sample
    readings: tuple[Reading, ...]
    scores: tuple[PageScore, ...]


def evaluate(
    sets: Sequence[SampleSet], readers: Sequence[Reader], progress_stream: TextIO
) -> tuple[EvaluationResult, list[ScoredPage]]:
    """Run an evaluation.

    Args:
        sets: Pages.
        readers: Who reads them, one after another; the first is the one the evaluation is about.
        progress_stream: Where progress is shown.

    Returns:
        The record, and every page with its readings.

    Raises:
        ReaderError: A reader cannot work.
    """
    samples = [sample for pages in sets for sample in pages.samples]
    readings = [read_all(reader, samples, progress_stream) for reader in readers]
    pages = [
        ScoredPage(sample, texts, tuple(score_page(sample.truth, text) for text in texts))
        for sample, texts in zip(samples, zip(*readings, strict=True), strict=True)
    ]
    result = EvaluationResult(
        date=current_date(),
        commit=source_commit(),
        machine=machine(),
        versions=package_versions(),
        sets=tuple(SetRecord(pages.name, len(pages.samples), pages.sha256) for pages in sets),
        readers=tuple(summarise(reader, place, pages, base_place(readers)) for place, reader in enumerate(readers)),
    )
    return result, pages


def read_all(reader: Reader, samples: Sequence[Sample], progress_stream: TextIO) -> list[Reading]:
    """Let one reader read everything.

    Args:
        reader: Who reads.
        samples: Pages.
        progress_stream: Where progress is shown.

    Returns:
        Readings in the order of the samples.

    Raises:
        RuntimeError: The reader left a page out.
    """
    progress = Progress(reader.name, len(samples), progress_stream)
    readings: dict[int, Reading] = {}
    for index, reading in reader.read(samples):
        readings[index] = reading
        progress.advance()
    if len(readings) != len(samples):
        raise RuntimeError(f"{reader.name} read {len(readings)} of {len(samples)} pages")
    return [readings[index] for index in range(len(samples))]


def base_place(readers: Sequence[Reader]) -> int | None:
    """Which reader is the base model that an adapter among them is compared with; None: there is no such pair."""
    if not any(is_adapter(reader.details) for reader in readers):
        return None
    return next((place for place, reader in enumerate(readers) if is_base(reader.details)), None)


def summarise(reader: Reader, place: int, pages: Sequence[ScoredPage], base_place: int | None = None) -> ReaderResult:
    """Sum up one reader by tier, tiers in the order in which they first come.

    Args:
        reader: Who read.
        place: Its place in the pages' scores.
        pages: All pages.
        base_place: The base model's place, which an adapter is compared with.

    Returns:
        Its figures.
    """
    tiers: dict[str, list[ScoredPage]] = {}
    for page in pages:
        tiers.setdefault(page.sample.tier, []).append(page)
    compared = base_place if is_adapter(reader.details) else None
    return ReaderResult(
        reader.name,
        reader.details,
        {
            tier: score_tier(
                [page.scores[place] for page in chosen],
                None if compared is None else [page.scores[compared] for page in chosen],
            )
            for tier, chosen in tiers.items()
        },
    )
