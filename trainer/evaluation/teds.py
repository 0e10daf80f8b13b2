"""TEDS: how close the tables of a reading are to the truth's, as trees of rows and cells.

The arithmetic is docling-metrics-table's `TEDScorer`. Its newer `TableMetric` is not used: there a cell with one wrong
letter costs as much as one without a text, while TEDS as published charges the share of the letters. Tables in HTML and
Markdown become the same trees first, without sections and heads, so the form in which one is written costs nothing.

Source: X. Zhong et al., Image-based Table Recognition: Data, Model, and Evaluation, 2020.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from lxml import etree
from rapidfuzz import fuzz

from trainer.evaluation.results import EvaluationResult
from trainer.evaluation.run import ScoredPage
from trainer.evaluation.samples import SampleSet
from trainer.evaluation.scores import TierScore, interval_of, page_draws
from trainer.evaluation.text_tables import TextTable, text_tables
from trainer.reading.protocol import ReaderError

PACKAGE = "docling-metrics-table"
_UNWRITABLE = {"Cc", "Cs"}
"""Categories of characters that XML cannot hold."""


@dataclass(frozen=True, slots=True)
class TableScore:
    """TEDS of one table, 0 to 1."""

    teds: float
    structure: float
    """Without the cells' texts."""


class TedsScorer:
    """Compares tables; raises `ReaderError` if the package is missing."""

    def __init__(self) -> None:
        try:
            module = import_module("docling_metrics_table.utils.teds")
        except ImportError as error:
            raise ReaderError(
                f"the truths have tables, and TEDS needs {PACKAGE}: pip install 'deepsynth-ocr[trainer]', or leave "
                "TEDS out with --no-teds [package_missing]"
            ) from error
        self._scorer: Any = module.TEDScorer()

    def score(self, truth: TextTable, reading: TextTable) -> TableScore:
        """Compare a table with the truth's."""
        expected, read = tree_of(truth), tree_of(reading)
        if expected == read:
            return TableScore(1.0, 1.0)
        # The package changes the trees that it is given.
        teds, structure = (
            self._scorer.teds(etree.fromstring(expected), etree.fromstring(read), structure_only)
            for structure_only in (False, True)
        )
        return TableScore(teds, structure)

    def score_page(self, truth: str, reading: str) -> list[TableScore]:
        """One score for each table of the truth; 0 where the reading has none for it. Tables too many cost nothing."""
        expected, read = text_tables(truth), text_tables(reading)
        partners = dict(pairs(expected, read))
        return [
            self.score(table, read[partners[place]]) if place in partners else TableScore(0.0, 0.0)
            for place, table in enumerate(expected)
        ]


def has_tables(sets: Sequence[SampleSet]) -> bool:
    """Whether any truth has a table."""
    return any(text_tables(sample.truth) for pages in sets for sample in pages.samples)


def pairs(expected: Sequence[TextTable], read: Sequence[TextTable]) -> list[tuple[int, int]]:
    """Which table was read as which: the most similar texts first, of equal ones the first; each at most once."""
    texts, others = ([" ".join(cell.text for cell in table.cells) for table in tables] for tables in (expected, read))
    likeness = [
        (-fuzz.ratio(text, other), place, partner)
        for place, text in enumerate(texts)
        for partner, other in enumerate(others)
    ]
    found: dict[int, int] = {}
    for _, place, partner in sorted(likeness):
        if place not in found and partner not in found.values():
            found[place] = partner
    return sorted(found.items())


def tree_of(table: TextTable) -> bytes:
    """A table as `<table><tr><td>...`, with spans."""
    root = etree.Element("table")
    rows = [etree.SubElement(root, "tr") for _ in range(max(cell.row for cell in table.cells) + 1)]
    for cell in table.cells:
        spans = {"colspan": cell.num_columns, "rowspan": cell.num_rows}
        given = {name: str(number) for name, number in spans.items() if number > 1}
        etree.SubElement(rows[cell.row], "td", given).text = _writable(cell.text)
    written: bytes = etree.tostring(root)
    return written


def with_teds(result: EvaluationResult, pages: Sequence[ScoredPage], scorer: TedsScorer) -> EvaluationResult:
    """The record with the mean of each tier's tables, and its interval by pages with tables."""
    readers = []
    for place, reader in enumerate(result.readers):
        tiers: dict[str, list[list[TableScore]]] = {}
        for page in pages:
            if page.scores:
                scores = scorer.score_page(page.sample.truth, page.readings[place].text)
                tiers.setdefault(page.sample.tier, []).append(scores)
        measured = {
            tier: _with_tables(score, [page for page in tiers[tier] if page]) for tier, score in reader.tiers.items()
        }
        readers.append(replace(reader, tiers=measured))
    return replace(result, readers=tuple(readers))


def _with_tables(score: TierScore, pages: Sequence[Sequence[TableScore]]) -> TierScore:
    if not pages:
        return score
    tables_N = np.array([len(page) for page in pages], float)
    draws_RN = page_draws(len(pages))
    figures, intervals = {}, dict(score.intervals)
    for name, field in (("teds", "teds"), ("teds_structure", "structure")):
        sums_N = np.array([sum(getattr(table, field) for table in page) for page in pages])
        figures[name] = float(sums_N.sum() / tables_N.sum())
        intervals[name] = interval_of((draws_RN @ sums_N) / (draws_RN @ tables_N))
    return replace(
        score,
        tables=int(tables_N.sum()),
        teds=figures["teds"],
        teds_structure=figures["teds_structure"],
        intervals=intervals,
    )


def _writable(text: str) -> str:
    return "".join(
        letter for letter in text if unicodedata.category(letter) not in _UNWRITABLE and letter not in "\ufffe\uffff"
    )
