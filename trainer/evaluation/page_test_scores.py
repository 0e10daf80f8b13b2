"""From verdicts of page tests to pass rates with intervals. Arithmetic only.

Shape letters: R resamples, N pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
    failures: dict[str, Failure] = {}
    for each in tests:
        reason = each.test.failure(answers[each.page])
        if reason is not None:
            failures[each.id] = Failure(each.id, str(each.page), each.test.kind, reason)
    files = _grouped(tests, lambda each: each.file)
    return PageTestScore(
        overall=_rate(tests, failures),
        kinds={kind: _rate(group, failures) for kind, group in _grouped(tests, lambda each: each.test.kind).items()},
        files={file: _rate(group, failures) for file, group in files.items()},
        mean_of_files=_mean([*files.values()], failures) if len(files) > 1 else None,
        failures=tuple(failures.values()),
    )


def _grouped(tests: Sequence[NamedTest], key: Callable[[NamedTest], str]) -> dict[str, list[NamedTest]]:
    groups: dict[str, list[NamedTest]] = {}
    for each in tests:
        groups.setdefault(key(each), []).append(each)
    return groups


def _rate(tests: Sequence[NamedTest], failures: Mapping[str, Failure]) -> PassRate:
    rates_R, pages = _resampled(tests, failures, 0)
    low, high = interval_of(rates_R)
    passed = sum(each.id not in failures for each in tests)
    return PassRate(pages, len(tests), passed, passed / len(tests), low, high)


def _mean(files: Sequence[Sequence[NamedTest]], failures: Mapping[str, Failure]) -> tuple[float, float, float]:
    rates = [_rate(group, failures).rate for group in files]
    # Each file draws its own pages: the same numbers would make files of one size rise and fall together.
    means_R = np.mean([_resampled(group, failures, place)[0] for place, group in enumerate(files)], axis=0)
    return (sum(rates) / len(rates), *interval_of(means_R))


def _resampled(
    tests: Sequence[NamedTest], failures: Mapping[str, Failure], stream: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], int]:
    """Rates of the resamples `[R]`, and the number of pages."""
    pages = {page: place for place, page in enumerate(dict.fromkeys(each.page for each in tests))}
    passed_N, tests_N = np.zeros(len(pages)), np.zeros(len(pages))
    for each in tests:
        tests_N[pages[each.page]] += 1
        passed_N[pages[each.page]] += each.id not in failures
    draws_RN = page_draws(len(pages), stream)
    return (draws_RN @ passed_N) / (draws_RN @ tests_N), len(pages)
