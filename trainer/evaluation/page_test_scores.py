"""From verdicts of page tests to pass rates with intervals. Arithmetic only.

Shape letters: R resamples, N pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.page_test_file import NamedTest, PageName
from trainer.evaluation.page_tests import Answer
from trainer.evaluation.scores import interval_of, page_draws


@dataclass(frozen=True, slots=True)
class PassRate:
    """Tests that passed; shares, not percent."""

    pages: int
    tests: int
    passed: int
    rate: float
    low: float
    """Lower end of the rate's 95 % interval, by resampling pages."""
    high: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that failed."""

    id: str
    page: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class PageTestScore:
    """One reader's figures."""

    overall: PassRate
    kinds: Mapping[str, PassRate]
    files: Mapping[str, PassRate]
    mean_of_files: tuple[float, float, float] | None
    """Mean of the files' rates, and the ends of its 95 % interval: olmOCR-Bench's overall score. None for one file."""
    failures: tuple[Failure, ...]


def score_tests(tests: Sequence[NamedTest], texts: Mapping[PageName, str]) -> PageTestScore:
    """Judge a reader's texts.

    Args:
        tests: at least one.
        texts: of every page that a test is about.

    Returns:
        Its figures. Intervals hold 95 % of resamples of the pages, the same at every call.

    Source:
        Percentile bootstrap, Efron and Tibshirani 1993, chapter 13; the mean of files resamples each apart, as
        olmOCR-Bench does.
    """
    answers = {page: Answer(text) for page, text in texts.items()}
    judged = [_Judged(each, each.test.failure(answers[each.page])) for each in tests]
    files = _grouped(judged, lambda each: each.test.file)
    kinds = _grouped(judged, lambda each: each.test.test.kind)
    return PageTestScore(
        overall=_rate(judged),
        kinds={kind: _rate(group) for kind, group in kinds.items()},
        files={file: _rate(group) for file, group in files.items()},
        mean_of_files=_mean([*files.values()]) if len(files) > 1 else None,
        failures=tuple(
            Failure(each.test.id, str(each.test.page), each.test.test.kind, each.reason)
            for each in judged
            if each.reason is not None
        ),
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    test: NamedTest
    reason: str | None
    """Why it failed."""


def _grouped(tests: Sequence[_Judged], key: Callable[[_Judged], str]) -> dict[str, list[_Judged]]:
    groups: dict[str, list[_Judged]] = {}
    for each in tests:
        groups.setdefault(key(each), []).append(each)
    return groups


def _rate(tests: Sequence[_Judged]) -> PassRate:
    rates_R, pages = _resampled(tests, 0)
    passed = sum(each.reason is None for each in tests)
    return PassRate(pages, len(tests), passed, passed / len(tests), *interval_of(rates_R))


def _mean(files: Sequence[Sequence[_Judged]]) -> tuple[float, float, float]:
    rates = [_rate(group).rate for group in files]
    # Each file draws its own pages: the same numbers would make files of one size rise and fall together.
    means_R = np.mean([_resampled(group, place)[0] for place, group in enumerate(files)], axis=0)
    return (sum(rates) / len(rates), *interval_of(means_R))


def _resampled(tests: Sequence[_Judged], stream: int) -> tuple[NDArray[np.float64], int]:
    """Rates of the resamples `[R]`, and the number of pages."""
    pages = {page: place for place, page in enumerate(dict.fromkeys(each.test.page for each in tests))}
    passed_N, tests_N = np.zeros(len(pages)), np.zeros(len(pages))
    for each in tests:
        tests_N[pages[each.test.page]] += 1
        passed_N[pages[each.test.page]] += each.reason is None
    draws_RN = page_draws(len(pages), stream)
    return (draws_RN @ passed_N) / (draws_RN @ tests_N), len(pages)
