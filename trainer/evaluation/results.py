"""The record of an evaluation: which reader read what, on which machine, and how well. To JSON and back.

Knows neither how it was made nor how it is shown. Has no local folders, so it can be committed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.evaluation.page_test_scores import Failure, PageTestScore, PassRate
from trainer.evaluation.scores import TierScore

FORMAT = 1
LAYOUT_KEY = "layout"
"""Whether pages were read whole or by lines, where that was asked for."""
WEIGHTS_KEY, ADAPTER_KEY, TASK_KEY = "weights", "adapter", "task"
"""A reader's details: SHA-256 of the base model's weights; of the adapter's, or its name where a service reads; the
task that a model is asked for."""
NORMALISATION = "NFC, runs of white space as one space, none at the ends; case and punctuation count"


class ResultError(ValueError):
    """A file that is not a result of this format."""


@dataclass(frozen=True, slots=True)
class SetRecord:
    """Which pages."""

    name: str
    pages: int
    sha256: str
    split: str | None = None
    """The split of a source that was read; None for a whole source or a set with tiers."""
    seen_pages: int | None = None
    """Pages that the adapter was trained on, or copies of them; None where its run kept no record."""


@dataclass(frozen=True, slots=True)
class TestedSet:
    """Which page tests."""

    __test__ = False

    files: tuple[str, ...]
    pages: int
    tests: int
    sha256: str
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Tests by kind that the files have and that were not judged."""


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """Figures of one reader."""

    name: str
    details: Mapping[str, str]
    """What identifies the reader: version, checksum of weights, device, options."""
    tiers: Mapping[str, TierScore]
    cer_change: tuple[float, float] | None = None
    """95 % interval of an adapter's CER on all pages minus the base model's; None for others."""
    page_tests: PageTestScore | None = None


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """A whole evaluation; the first reader is the one it is about."""

    date: str
    """UTC, ISO 8601."""
    commit: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    sets: tuple[SetRecord, ...]
    readers: tuple[ReaderResult, ...]
    page_tests: TestedSet | None = None

    @property
    def adapter(self) -> ReaderResult | None:
        """The first reader that is an adapter."""
        return next((reader for reader in self.readers if is_adapter(reader.details)), None)

    @property
    def base(self) -> ReaderResult | None:
        """The base model in an adapter's evaluation: the first model that is not an adapter."""
        return next((reader for reader in self.readers if self.adapter and is_base(reader.details)), None)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Tiers in the order in which they were read."""
        return tuple(dict.fromkeys(tier for reader in self.readers for tier in reader.tiers))


def is_adapter(details: Mapping[str, str]) -> bool:
    """Whether a reader's details are those of an adapter."""
    return ADAPTER_KEY in details


def is_base(details: Mapping[str, str]) -> bool:
    """Whether a reader's details are those of a model without an adapter; other programs have no task."""
    return ADAPTER_KEY not in details and TASK_KEY in details


def to_json(result: EvaluationResult) -> str:
    """The record as text, keys in a fixed order, ending in a line break."""
    record = {"format": FORMAT, "normalisation": NORMALISATION, **asdict(result)}
    for reader in record["readers"]:
        reader["tiers"] = {tier: _measured(score) for tier, score in reader["tiers"].items()}
        change = reader.pop("cer_change")
        if change is not None:
            reader["cer_change"] = change
        if reader["page_tests"] is None:
            del reader["page_tests"]
    if record["page_tests"] is None:
        del record["page_tests"]
    record["sets"] = [{name: value for name, value in each.items() if value is not None} for each in record["sets"]]
    return json.dumps(_all_rounded(record), indent=1, ensure_ascii=False) + "\n"


def from_json(text: str | bytes) -> EvaluationResult:
    """Parse what `to_json` wrote; raises `ResultError` if it is not a record of this format."""
    try:
        record = json.loads(text)
        form = record["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ResultError(f"not a result of an evaluation: {error!r}") from error
    if form != FORMAT:
        raise ResultError(f"the result has format {form}, not {FORMAT}")
    try:
        return EvaluationResult(
            date=record["date"],
            commit=record["commit"],
            machine=record["machine"],
            versions=record["versions"],
            sets=tuple(SetRecord(**entry) for entry in record["sets"]),
            readers=tuple(
                ReaderResult(
                    entry["name"],
                    entry["details"],
                    {tier: _tier_score(score) for tier, score in entry["tiers"].items()},
                    _interval(entry.get("cer_change")),
                    _page_test_score(entry.get("page_tests")),
                )
                for entry in record["readers"]
            ),
            page_tests=_tested_set(record.get("page_tests")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResultError(f"not a result of an evaluation: {error!r}") from error


def load_result(path: Path) -> EvaluationResult:
    """Read a record from a file; raises `FileNotFoundError`, or `ResultError` if it is not a record of this format."""
    return from_json(path.read_bytes())


def _interval(ends: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _tier_score(score: Mapping[str, Any]) -> TierScore:
    intervals = {name: (float(low), float(high)) for name, (low, high) in score.get("intervals", {}).items()}
    return TierScore(**{**score, "intervals": intervals})


def _tested_set(entry: Mapping[str, Any] | None) -> TestedSet | None:
    return None if entry is None else TestedSet(**{**entry, "files": tuple(entry["files"])})


def _page_test_score(entry: Mapping[str, Any] | None) -> PageTestScore | None:
    if entry is None:
        return None
    mean = entry["mean_of_files"]
    return PageTestScore(
        overall=PassRate(**entry["overall"]),
        kinds={kind: PassRate(**rate) for kind, rate in entry["kinds"].items()},
        files={file: PassRate(**rate) for file, rate in entry["files"].items()},
        mean_of_files=None if mean is None else (mean[0], mean[1], mean[2]),
        failures=tuple(Failure(**failure) for failure in entry["failures"]),
    )


def _measured(score: Mapping[str, Any]) -> dict[str, Any]:
    """Figures without those that were not measured."""
    return {name: value for name, value in score.items() if value is not None}


def _all_rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {name: _all_rounded(part) for name, part in value.items()}
    return [_all_rounded(part) for part in value] if isinstance(value, list | tuple) else value
