"""The samples of a run, each reachable by its number: answers in memory, images in one file on disk.

Sources are read once, front to back; afterwards only the sampler decides the order, so a resumed run
sees what an uninterrupted one would. Broken rows and samples that are too long are left out and counted. Needs neither
torch nor a tokenizer's package: a function gives the tokens.
"""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from PIL import Image

from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan, plan_views
from shared.deepseek_ocr.images import prepare_views
from trainer.data.sources.samples import PageSample
from trainer.data.sources.splits import SplitShares, group_key, image_key, text_key
from trainer.evaluation.seen import seen_line

IDS = "I"
"""Type code of answers' tokens: 32 bits, without a sign."""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One sample, its images left on disk.

    Attributes:
        name: where it is in the source.
        plans: of its images.
        places: offset and length of each image in the store.
        answer_ids: tokens to produce, without the end token.
        text: the same as text.
    """

    name: str
    plans: tuple[ViewPlan, ...]
    places: tuple[tuple[int, int], ...]
    answer_ids: array[int]
    text: str

    @property
    def num_vision_tokens(self) -> int:
        """Number of its vision tokens."""
        return sum(plan.num_vision_tokens for plan in self.plans)

    @property
    def num_tokens(self) -> int:
        """Length in tokens, without the prompt's."""
        return self.num_vision_tokens + len(self.answer_ids)


class ImageStore:
    """Encoded images one after another in a file that lasts as long as the run."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("w+b")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, data: bytes) -> tuple[int, int]:
        """Append an image; returns its offset and length."""
        self._file.write(data)
        place = (self._end, len(data))
        self._end += len(data)
        return place

    def open(self, place: tuple[int, int]) -> Image.Image:
        """Decode the image at an offset and length."""
        self._file.flush()
        data = os.pread(self._file.fileno(), place[1], place[0])
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")


@dataclass(slots=True)
class TrainingSet:
    """Samples of one purpose.

    Attributes:
        samples: the samples.
        num_too_long: how many were left out for their length.
        shortest_too_long: tokens of the shortest of them.
        seen: what identifies the pages, for evaluations; see `trainer.evaluation.seen`.
    """

    samples: list[TrainingSample] = field(default_factory=list)
    num_too_long: int = 0
    shortest_too_long: int = 0
    seen: list[str] = field(default_factory=list)
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, sample: TrainingSample, content: bytes) -> None:
        """Add a sample; `content` is the digest of its images' pixels."""
        self.samples.append(sample)
        self._digest.update(content + hashlib.sha256(sample.text.encode()).digest())

    @property
    def fingerprint(self) -> str:
        """Hex digest of images and texts, in order."""
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainingSample:
        return self.samples[index]

    def __iter__(self) -> Iterator[TrainingSample]:
        return iter(self.samples)


@dataclass(frozen=True, slots=True)
class SampleReader:
    """Turns samples of sources into training samples.

    Attributes:
        store: gets the images.
        geometry: of the model.
        mode: resolution.
        encode: tokens of a text.
        max_tokens: longest sample, prompt and ends not counted.
    """

    store: ImageStore
    geometry: GeometryConfig
    mode: Mode
    encode: Callable[[str], list[int]]
    max_tokens: int

    def take(self, sample: PageSample, into: TrainingSet) -> None:
        """Add a source's sample to a set, unless it is too long."""
        plans = tuple(plan_views(image.width_px, image.height_px, self.mode, self.geometry) for image in sample.images)
        ids = array(IDS, self.encode(sample.text))
        num_tokens = len(ids) + sum(plan.num_vision_tokens for plan in plans)
        if num_tokens > self.max_tokens:
            into.num_too_long += 1
            into.shortest_too_long = min(into.shortest_too_long or num_tokens, num_tokens)
            return
        places = tuple(self.store.add(image.data) for image in sample.images)
        content = b"".join(bytes.fromhex(image.pixels_sha256) for image in sample.images)
        into.seen.append(seen_line(sample.images, sample.text))
        into.add(TrainingSample(sample.name, plans, places, ids, sample.text), content)

    def views(self, sample: TrainingSample) -> list[PageViews]:
        """Decode a sample's images into views."""
        return [
            PageViews(plan, *prepare_views(self.store.open(place), plan, self.geometry))
            for plan, place in zip(sample.plans, sample.places, strict=True)
        ]


def split_samples(samples: Iterable[PageSample], shares: SplitShares) -> Iterator[tuple[str, PageSample]]:
    """Pair each sample with its split: the one that the source names, else one by the digest of its content."""
    for sample in samples:
        of_images = b"".join(image_key(image.pixels_sha256) for image in sample.images)
        key = group_key(sample.group) or text_key(sample.text) or of_images
        yield sample.split or shares.split_of(key), sample
