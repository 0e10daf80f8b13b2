"""RapidOCR as a reader: PP-OCR's detection and recognition through ONNX Runtime, with the package's own models.

It finds the text of whole images, so it is not told the layout. Its boxes whose middles share a height are one line.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

import numpy as np

from trainer.evaluation.samples import Sample, open_page
from trainer.evaluation.scores import Reading
from trainer.reading.protocol import ReaderError

PACKAGES = ("rapidocr", "onnxruntime")


class RapidReader:
    """Reads with the package `rapidocr`, one page after another.

    Args:
        num_threads: Of ONNX Runtime.

    Raises:
        ReaderError: The package is not installed.
    """

    def __init__(self, num_threads: int = 1) -> None:
        if any(importlib.util.find_spec(name) is None for name in PACKAGES):
            raise ReaderError(
                "RapidOCR is not installed; install the extra: pip install 'deepsynth-ocr[trainer-rapidocr]'"
            )
        import rapidocr

        self._versions = {name: version(name) for name in PACKAGES}
        self._num_threads = num_threads
        threads = {"EngineConfig.onnxruntime.intra_op_num_threads": num_threads}
        self._engine = rapidocr.RapidOCR(params={"Global.log_level": "error", **threads})

    @property
    def name(self) -> str:
        """Name and version as tables show them."""
        return f"RapidOCR {self._versions['rapidocr']}"

    @property
    def details(self) -> Mapping[str, str]:
        """Versions and threads."""
        return {**self._versions, "threads": str(self._num_threads)}

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages one after another.

        If an image cannot be opened or the package fails on it, its reading is empty and unfinished.
        """
        for place, sample in enumerate(samples):
            start = time.perf_counter()
            text, ended = "", True
            try:
                text = self._text_of(sample)
            except Exception:  # noqa: BLE001 - the package raises what its libraries do, and the pages after it count
                ended = False
            yield place, Reading(text, time.perf_counter() - start, ended)

    def _text_of(self, sample: Sample) -> str:
        # It opens files with 16 bits, CMYK or a palette in other colours, and takes arrays as OpenCV's: BGR.
        found = self._engine(np.ascontiguousarray(np.asarray(open_page(sample.image_path))[..., ::-1]))
        rows = [
            (min(x for x, _ in box), min(y for _, y in box), max(y for _, y in box), str(text))
            for box, text in zip([] if found.boxes is None else found.boxes, found.txts or (), strict=True)
        ]
        return "\n".join(" ".join(cells) for cells in lines_of(rows))


def lines_of(rows: Sequence[tuple[float, float, float, str]]) -> list[list[str]]:
    """Put pieces of text into lines.

    Args:
        rows: Left, top and bottom in px, and the text.

    Returns:
        Lines from top to bottom, each from left to right.
    """
    lines: list[list[tuple[float, float, float, str]]] = []
    for row in sorted(rows, key=lambda each: each[1] + each[2]):
        middle = (row[1] + row[2]) / 2
        if lines and abs(middle - (lines[-1][0][1] + lines[-1][0][2]) / 2) < 0.5 * (row[2] - row[1]):
            lines[-1].append(row)
        else:
            lines.append([row])
    return [[text for *_, text in sorted(line)] for line in lines]
