"""Builders for evaluations: samples on disk, readers that answer from a table, records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer.evaluation.results import EvaluationResult, ReaderResult, SetRecord
from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading, TierScore


class TableReader:
    """Answers from a table by sample name, last page first."""

    def __init__(self, name: str, texts: Mapping[str, str], unfinished: Sequence[str] = ()) -> None:
        self.name = name
        self.details = {"version": "1"}
        self._texts = texts
        self._unfinished = unfinished

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Every page takes half a second."""
        for index in reversed(range(len(samples))):
            name = samples[index].name
            yield index, Reading(self._texts[name], 0.5, name not in self._unfinished)


def write_set(folder: Path, pages: Sequence[tuple[str, str, str]], *, height_px: int = 40) -> Path:
    """A set of drawn pages, `(file, tier, text)` each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, text in pages:
        image = Image.new("L", (60 + 18 * max(map(len, text.split("\n"))), height_px * (1 + text.count("\n"))), 255)
        ImageDraw.Draw(image).multiline_text((20, 4), text, font=ImageFont.load_default(28), fill=0)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    lines = [
        json.dumps({"image": name, "tier": tier, "text": str(Path(name).with_suffix(".txt"))})
        for name, tier, _ in pages
    ]
    (folder / "index.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def tier_score(cer: float = 0.0123456789) -> TierScore:
    """Figures that can be told apart."""
    return TierScore(
        pages=40,
        characters=1234,
        cer=cer,
        cer_low=0.9 * cer,
        cer_high=1.1 * cer,
        cer_median=0.005,
        cer_capped=0.0122,
        wer=0.0345,
        exact_ratio=0.55,
        unfinished_ratio=0.025,
        seconds_per_page=0.4321,
    )


def small_result() -> EvaluationResult:
    """Two readers, two tiers."""
    return EvaluationResult(
        date="2026-11-22T12:00:00+00:00",
        commit="0123456789abcdef0123456789abcdef01234567",
        machine={"processor": "Processor X", "cores": "2 cores"},
        versions={"python": "3.11.2"},
        sets=(SetRecord("held-out", 80, "ab" * 32),),
        readers=(
            ReaderResult(
                "nano", {"weights": "cd" * 32, "dtype": "float32"}, {"line": tier_score(), "page": tier_score(0.5)}
            ),
            ReaderResult("Tesseract 5.3.0", {"version": "5.3.0"}, {"line": tier_score(0.25)}),
        ),
    )
