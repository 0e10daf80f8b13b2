"""An evaluation from start to end: every reader reads every page, every reading is scored, tiers are summarised.

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
from trainer.evaluation.scores import PageScore, Reading, change_interval, score_page, score_tier
from trainer.evaluation.seen import SeenPages
from trainer.reading.protocol import Reader
from trainer.tracing import span


@dataclass(frozen=True, slots=True)
class ScoredPage:
    """A page with each reader's reading and score, in the readers' order."""

    sample: Sample
    readings: tuple[Reading, ...]
    scores: tuple[PageScore, ...]


def evaluate(
    sets: Sequence[SampleSet], readers: Sequence[Reader], progress_stream: TextIO, seen: SeenPages | None = None
) -> tuple[EvaluationResult, list[ScoredPage]]:
    """Read all sets with each reader in turn, and score them; the first reader is the one that the evaluation is about.

    Args:
        sets: the pages.
        readers: at least one.
        progress_stream: where progress is written to.
        seen: pages that the adapter among the readers was trained on; None if unknown.

    Returns:
        The record, and every page with its readings.

    Raises:
        ReaderError: a reader cannot work.
    """
    # Before any model reads for minutes.
    counts = [None if seen is None else seen.count(pages) for pages in sets]
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
        sets=tuple(
            SetRecord(pages.name, len(pages.samples), pages.sha256, pages.split, count)
            for pages, count in zip(sets, counts, strict=True)
        ),
        readers=tuple(summarise(reader, place, pages, base_place(readers)) for place, reader in enumerate(readers)),
    )
    return result, pages


def read_all(reader: Reader, samples: Sequence[Sample], progress_stream: TextIO) -> list[Reading]:
    """Readings of one reader in the order of the samples; raises `RuntimeError` if it left out a page."""
    progress = Progress(reader.name, len(samples), progress_stream)
    readings: dict[int, Reading] = {}
    with span("evaluate.read", {"deepsynth.samples": len(samples)}):
        for index, reading in reader.read(samples):
            readings[index] = reading
            progress.advance()
    if len(readings) != len(samples):
        raise RuntimeError(f"{reader.name} read {len(readings)} of {len(samples)} pages")
    return [readings[index] for index in range(len(samples))]


def base_place(readers: Sequence[Reader]) -> int | None:
    """Index of the base model that an adapter among the readers is compared with; None without such a pair."""
    if not any(is_adapter(reader.details) for reader in readers):
        return None
    return next((place for place, reader in enumerate(readers) if is_base(reader.details)), None)


def summarise(reader: Reader, place: int, pages: Sequence[ScoredPage], base_place: int | None = None) -> ReaderResult:
    """Summarise one reader by tier, in order of first occurrence.

    Args:
        reader: the reader.
        place: index of its scores in the pages.
        pages: all pages.
        base_place: index of the base model's scores, which an adapter is compared with.

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
        None
        if compared is None
        else change_interval([page.scores[place] for page in pages], [page.scores[compared] for page in pages]),
    )
