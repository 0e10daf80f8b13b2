"""Whether an adapter is measured on pages that it was trained on, or on copies of them.

A training run keeps what identifies its pages, not the pages; an evaluation of its adapter looks its own pages up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from trainer.data.errors import RowError
from trainer.data.likeness import LikenessRegister, PageLikeness, likeness_of
from trainer.data.sources.images import PageImage, check_image
from trainer.evaluation.samples import SampleError, SampleSet

SEEN_FILE: Final = "seen-pages.txt"
"""In a training run's folder: a line for each page that was trained on."""
_TRAINED: Final = "trained"


def seen_line(images: Sequence[PageImage], text: str) -> str:
    """The line of a sample: digests of its images' pixels, and its likeness."""
    likeness = likeness_of(text, [image.look for image in images])
    return f"{','.join(image.pixels_sha256 for image in images)} {likeness.as_text()}"


@dataclass(slots=True)
class SeenPages:
    """Pages that an adapter was trained on."""

    _digests: set[str] = field(default_factory=set)
    _pages: LikenessRegister = field(default_factory=LikenessRegister)

    @classmethod
    def of_lines(cls, lines: Iterable[str]) -> Self:
        """Parse lines of `seen_line`; raises `SampleError` if one is something else."""
        seen = cls()
        for number, line in enumerate(lines, 1):
            try:
                digests, likeness = line.split()
                seen._pages.add(PageLikeness.from_text(likeness), _TRAINED)
            except ValueError as error:
                raise SampleError(f"line {number} of {SEEN_FILE} cannot be read: train again, or delete it") from error
            seen._digests.update(digests.split(","))
        return seen

    @classmethod
    def of_run(cls, run: Path) -> Self | None:
        """Those of a training run; None if the folder has no record of them."""
        path = run / SEEN_FILE
        return cls.of_lines(path.read_text(encoding="ascii").splitlines()) if path.is_file() else None

    def count(self, pages: SampleSet) -> int:
        """How many pages of a set were trained on, or are copies; raises `SampleError` if an image cannot be read."""
        return sum(map(self._has, ((sample.image_path, sample.truth) for sample in pages.samples)))

    def _has(self, page: tuple[Path, str]) -> bool:
        path, truth = page
        try:
            image = check_image(path.read_bytes())
        except RowError as error:
            raise SampleError(f"{path}: {error}") from error
        return image.pixels_sha256 in self._digests or self._pages.find(likeness_of(truth, [image.look])) is not None
