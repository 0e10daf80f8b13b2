"""Every page with its truth, readings and errors as JSON lines: for inspection, not for committing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.evaluation.run import ScoredPage


def write_transcript(path: Path, pages: Sequence[ScoredPage], reader_names: Sequence[str]) -> None:
    """Write one object a page, in the pages' order."""
    with path.open("w", encoding="utf-8") as stream:
        for page in pages:
            readings = [
                {
                    "reader": name,
                    "text": reading.text,
                    "cer": round(score.chars.rate, 6),
                    "edits": score.chars.edits,
                    "characters": score.chars.length,
                    "ended": reading.ended,
                    "seconds": round(reading.seconds, 3),
                }
                for name, reading, score in zip(reader_names, page.readings, page.scores, strict=True)
            ]
            entry = {
                "file": page.sample.name,
                "tier": page.sample.tier,
                "truth": page.sample.truth,
                "readings": readings,
            }
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
