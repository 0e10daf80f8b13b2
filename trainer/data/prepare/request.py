"""The request for a prepared set, and the summary of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer.data.prepare.shards import SetFormat
from trainer.data.sources.splits import SplitShares

STEP_ROWS: Final = 1000
"""Rows of a step, and so of a file: about 100 MB of scans, the most that a kill loses."""


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """Everything that decides what a set will contain.

    Attributes:
        out: path of the set.
        form: its file format.
        shares: what is held out where the source names no splits.
        max_broken_share: share of rows that may be left out.
        limit: maximum number of rows.
        step_rows: rows of a step.
        several_images: samples may have several images.
        settings: further settings, as written to the manifest.
        caption_fonts: folders of fonts for the texts on the contact sheet.
    """

    out: Path
    form: SetFormat = SetFormat.PARQUET
    shares: SplitShares = field(default_factory=SplitShares)
    max_broken_share: float = 0.01
    limit: int | None = None
    step_rows: int = STEP_ROWS
    several_images: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    caption_fonts: tuple[Path, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the manifest: without the share of broken rows, which may be raised for unfinished work."""
        return {
            "format": self.form.value,
            "shares": asdict(self.shares),
            "limit": self.limit,
            "step_rows": self.step_rows,
            **self.settings,
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run produced.

    Attributes:
        out: the set.
        manifest: its `dataset.json`.
    """

    out: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        made = self.manifest
        splits = ", ".join(f"{record['num_samples']} {name}" for name, record in made["splits"].items())
        left_out = sum(made["broken_rows"].values())
        lines = [
            f"{self.out}: {splits}; {left_out} of {made['num_rows']} rows left out"
            f", {made['num_duplicates']} duplicates refused; see {self.out / 'README.md'}",
            _counted("passed over", made.get("passed_over")),
            _counted("to look at, in doubtful-rows.jsonl", made.get("doubtful_rows")),
            _counted("prompts, of which `train --task` trains one", made.get("prompts")),
        ]
        return "\n".join(line for line in lines if line)


def _counted(what: str, counts: Mapping[str, int] | None) -> str:
    """Counts by kind as a line; empty without any."""
    return f"{what}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}" if counts else ""
