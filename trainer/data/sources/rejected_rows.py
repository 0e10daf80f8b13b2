"""Rows that are left out: which, why, and whether they are still few enough.

A run over a long stream must not fail at row 80,000, so the share is checked early (after `EARLY_ROWS`) and at the end,
and in between rows are only counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from trainer.data.errors import DataCode, DataError
from trainer.data.sources.protocol import BrokenRow

EARLY_ROWS: Final = 200
"""Rows after which a mostly broken source (a wrong column, a wrong folder) is refused."""
MOST_EARLY_SHARE: Final = 0.5
NAMED_ROWS: Final = 5
KEPT_ROWS: Final = 1000
"""Broken rows kept with their reasons; further ones are only counted by code."""


@dataclass(slots=True)
class RejectedRows:
    """Counts rows and keeps those that were left out.

    Attributes:
        max_share: maximum share of broken rows.
        num_rows: rows seen, including broken ones.
        codes: broken rows by code.
        broken: the first `KEPT_ROWS` of them.
    """

    max_share: float = 0.01
    num_rows: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    broken: list[BrokenRow] = field(default_factory=list)

    @property
    def num_broken(self) -> int:
        """Rows left out."""
        return self.codes.total()

    def take(self) -> None:
        """Count a valid row; raises `DataError` if the source's first rows are mostly broken."""
        self.num_rows += 1
        self._judge_early()

    def skip(self, row: BrokenRow) -> None:
        """Count a row that is left out; raises `DataError` if the source's first rows are mostly broken."""
        self.num_rows += 1
        self.codes[row.code.value] += 1
        if len(self.broken) < KEPT_ROWS:
            self.broken.append(row)
        self._judge_early()

    def check(self) -> None:
        """Check a source read to its end; raises `DataError` if too many rows are broken."""
        if self.num_broken > self.max_share * self.num_rows:
            raise self._refusal()

    def _judge_early(self) -> None:
        if self.num_rows == EARLY_ROWS and self.num_broken > max(self.max_share, MOST_EARLY_SHARE) * EARLY_ROWS:
            raise self._refusal()

    def _refusal(self) -> DataError:
        codes = ", ".join(f"{count} {code}" for code, count in self.codes.most_common())
        more = [f"and {self.num_broken - NAMED_ROWS} more"] if self.num_broken > NAMED_ROWS else []
        return DataError(
            DataCode.TOO_MANY_BROKEN_ROWS,
            f"{self.num_broken} of {self.num_rows} rows cannot be used ({codes}), more than {self.max_share:.2%}",
            "correct them, or allow more with --max-broken-share",
            [*self.broken[:NAMED_ROWS], *more],
        )
