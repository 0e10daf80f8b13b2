"""Pages with known texts: where they are on disk and how they are opened.

Two layouts. A *set* is a folder with `index.jsonl`, one object a line: `image` and `text` (files, relative to the
folder) and `tier`; optionally `layout`, and any other keys.
`trainer.nano.pages.evaluation_set` makes such sets. A folder of *scans* has `images/NAME.*` and `truth/NAME.txt`.
`trainer.evaluation.sources` reads other layouts. Knows nothing of readers and scores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from PIL import Image

from shared.images.errors import ImageError
from shared.images.limits import ImageLimits
from shared.images.raster import open_raster

REAL_TIER = "real"
"""Tier of scans that come without one."""
INDEX_NAME = "index.jsonl"


class SampleError(ValueError):
    """A set that cannot be read; the message says where and why."""


class Layout(StrEnum):
    """What a page looks like at large: what a reader may be told beforehand."""

    LINE = "line"
    BLOCK = "block"
    PAGE = "page"


@dataclass(frozen=True, slots=True)
class Sample:
    """One page and its text."""

    name: str
    """Unique within a run, without any folder outside the set."""
    tier: str
    layout: Layout
    image_path: Path
    truth: str


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Pages of one folder, in the order of its index."""

    name: str
    samples: tuple[Sample, ...]
    sha256: str
    """Over every image's bytes and truth, in order; says which pages the figures are about."""
    split: str | None = None
    """The split of a source that was asked for."""


def is_set(folder: Path) -> bool:
    """Whether a folder's index has tiers, which tells a set from any other index of pages."""
    try:
        with (folder / INDEX_NAME).open(encoding="utf-8") as index:
            first = json.loads(next((line for line in index if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "tier" in first


def load_set(folder: Path, tiers: Sequence[str] = (), limit: int | None = None) -> SampleSet:
    """Read a set's `index.jsonl`.

    Args:
        folder: the set.
        tiers: tiers to read; empty for all.
        limit: maximum number of samples of each tier, the first ones.

    Returns:
        The samples.

    Raises:
        SampleError: no index, a broken line, a missing file, a tier that the set lacks, or no samples.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        raise SampleError(f"{folder} is not an evaluation set: it has no {INDEX_NAME}")
    # JSON may hold the other signs that `splitlines` parts lines at.
    lines = _read_utf8(index).split("\n")
    samples = [_parse(folder, line, number) for number, line in enumerate(lines, 1) if line.strip()]
    missing = sorted(set(tiers) - {sample.tier for sample in samples})
    if missing:
        raise SampleError(f"{folder} has no tier {', '.join(missing)}")
    return make_set(folder.resolve().name, (sample for sample in samples if not tiers or sample.tier in tiers), limit)


def load_scans(folder: Path, limit: int | None = None) -> SampleSet:
    """Read scans from `images/` and their texts from `truth/`, all of tier `real` and layout `block`.

    `limit` takes the first ones by name. Raises `SampleError` if a folder or a text is missing, or without images.
    """
    if not (folder / "images").is_dir():
        raise SampleError(f"{folder} is not a folder of scans: it has no images/")
    images = sorted(path for path in (folder / "images").iterdir() if path.is_file())
    return make_set(
        folder.resolve().name,
        (
            Sample(path.name, REAL_TIER, Layout.BLOCK, path, _read_truth(folder / "truth" / f"{path.stem}.txt"))
            for path in images
        ),
        limit,
    )


def make_set(name: str, samples: Iterable[Sample], limit: int | None) -> SampleSet:
    """Make a set of at most `limit` samples of each tier, and its fingerprint; raises `SampleError` without samples."""
    taken: list[Sample] = []
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.tier] = counts.get(sample.tier, 0) + 1
        if limit is None or counts[sample.tier] <= limit:
            taken.append(sample)
    if not taken:
        raise SampleError(f"{name} has no samples")
    digest = hashlib.sha256()
    for sample in taken:
        digest.update(hashlib.sha256(sample.image_path.read_bytes()).digest())
        digest.update(hashlib.sha256(sample.truth.encode()).digest())
    return SampleSet(name, tuple(taken), digest.hexdigest())


def open_page(path: Path) -> Image.Image:
    """Open an image as a person sees it: upright, RGB, transparency on white; raises `SampleError` if it cannot be."""
    with _naming(path):
        return open_raster(path.read_bytes(), ImageLimits()).read(1).image


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels that `open_page` will give; raises `SampleError` if it is no image."""
    with _naming(path):
        return open_raster(path.read_bytes(), ImageLimits()).upright_size()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise SampleError(f"{path}: the image cannot be read: {error}") from error


def layout_of_tier(tier: str) -> Layout:
    """Layout by a tier's name; blocks by default."""
    return next((layout for layout in Layout if layout.value in tier), Layout.BLOCK)


def _parse(folder: Path, line: str, number: int) -> Sample:
    try:
        entry = json.loads(line)
        name, text_name, tier = str(entry["image"]), str(entry["text"]), str(entry["tier"])
        layout = Layout(entry["layout"]) if "layout" in entry else layout_of_tier(tier)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SampleError(f"{folder / INDEX_NAME}, line {number}: {error!r}") from error
    if not (folder / name).is_file():
        raise SampleError(f"{folder / INDEX_NAME}, line {number}: there is no {name}")
    return Sample(name, tier, layout, folder / name, _read_truth(folder / text_name))


def _read_truth(path: Path) -> str:
    if not path.is_file():
        raise SampleError(f"the truth {path} is missing")
    return _read_utf8(path)


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path} cannot be read as UTF-8: {error}") from error
