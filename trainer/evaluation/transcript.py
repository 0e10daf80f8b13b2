"""Every page with its truth, readings and errors as JSON lines: for inspection, not for committing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainer.evaluation.run import ScoredPage
from trainer.evaluation.scores import PageScore


def write_transcript(path: Path, pages: Sequence[ScoredPage], reader_names: Sequence[str]) -> None:
    """Write one object a page, in the pages' order; a page that only tests judge has neither truth nor rates."""
    with path.open("w", encoding="utf-8") as stream:
        for page in pages:
            readings = [
                {
                    "reader": name,
                    "text": reading.text,
                    **({} if score is None else _rates(score)),
                    "ended": reading.ended,
                    "seconds": round(reading.seconds, 3),
                }
                for name, reading, score in zip_longest(reader_names, page.readings, page.scores)
            ]
            entry = {
                "file": page.sample.name,
                "tier": page.sample.tier,
                "truth": page.sample.truth if page.scores else None,
                "readings": readings,
            }
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _rates(score: PageScore) -> dict[str, Any]:
    return {"cer": round(score.chars.rate, 6), "edits": score.chars.edits, "characters": score.chars.length}
