"""An evaluation from start to end: every reader reads every page, every reading is scored, tiers are summarised.

Knows neither the command line nor how results are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from trainer.evaluation.page_test_scores import PageTestScore, score_tests
from trainer.evaluation.progress import Progress
from trainer.evaluation.provenance import current_date, machine, package_versions, source_commit
from trainer.evaluation.results import EvaluationResult, ReaderResult, SetRecord, TestedSet, is_adapter, is_base
from trainer.evaluation.samples import Sample, SampleSet
from trainer.evaluation.scores import PageScore, Reading, change_interval, score_page, score_tier
from trainer.evaluation.seen import SeenPages
from trainer.reading.protocol import Reader
from trainer.tracing import span

if TYPE_CHECKING:
    from trainer.evaluation.tested_pages import TestedPages


@dataclass(frozen=True, slots=True)
class ScoredPage:
    """A page with each reader's reading and score, in the readers' order; no scores where only tests judge it."""

    sample: Sample
    readings: tuple[Reading, ...]
    scores: tuple[PageScore, ...]


def evaluate(
    sets: Sequence[SampleSet],
    readers: Sequence[Reader],
    progress_stream: TextIO,
    seen: SeenPages | None = None,
    tested: TestedPages | None = None,
) -> tuple[EvaluationResult, list[ScoredPage]]:
    """Read all sets with each reader in turn, and score them; the first reader is the one that the evaluation is about.

    Args:
        sets: the pages.
        readers: at least one.
        progress_stream: where progress is written to.
        seen: pages that the adapter among the readers was trained on; None if unknown.
        tested: page tests; their pages are read with the others, and once if a set has them.

    Returns:
        The record, and every page with its readings, those with a truth first.

    Raises:
        ReaderError: a reader cannot work.
    """
    # Before any model reads for minutes.
    counts = [None if seen is None else seen.count(pages) for pages in sets]
    samples = [sample for pages in sets for sample in pages.samples]
    known = set(samples)
    only_tested = [] if tested is None else [each for each in tested.samples.values() if each not in known]
    readings = [read_all(reader, [*samples, *only_tested], progress_stream) for reader in readers]
    pages = [
        ScoredPage(sample, texts, tuple(score_page(sample.truth, text) for text in texts) if sample in known else ())
        for sample, texts in zip([*samples, *only_tested], zip(*readings, strict=True), strict=True)
    ]
    scored = pages[: len(samples)]
    results = [summarise(reader, place, scored, base_place(readers)) for place, reader in enumerate(readers)]
    if tested is not None:
        results = [replace(result, page_tests=_judged(tested, pages, place)) for place, result in enumerate(results)]
    result = EvaluationResult(
        date=current_date(),
        commit=source_commit(),
        machine=machine(),
        versions=package_versions(),
        sets=tuple(
            SetRecord(pages.name, len(pages.samples), pages.sha256, pages.split, count)
            for pages, count in zip(sets, counts, strict=True)
        ),
        readers=tuple(results),
        page_tests=None if tested is None else _tested_set(tested),
    )
    return result, pages


def _judged(tested: TestedPages, pages: Sequence[ScoredPage], place: int) -> PageTestScore:
    texts = {page.sample: page.readings[place].text for page in pages}
    return score_tests(tested.tests.tests, {name: texts[sample] for name, sample in tested.samples.items()})


def _tested_set(tested: TestedPages) -> TestedSet:
    tests = tested.tests.tests
    files = tuple(dict.fromkeys(each.file for each in tests))
    return TestedSet(files, len(tested.samples), len(tests), tested.sha256, tested.tests.skipped)


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
        if compared is None or not pages
        else change_interval([page.scores[place] for page in pages], [page.scores[compared] for page in pages]),
    )
