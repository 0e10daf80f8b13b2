"""A checkpoint as a reader, in this process.

Owns how pages are batched and how long an answer may be; `trainer.reading.generation` decodes. Images are opened batch
by batch, so memory does not grow with the set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan, plan_views
from shared.deepseek_ocr.images import prepare_views, rescaled
from shared.deepseek_ocr.line_views import is_crop
from shared.deepseek_ocr.reading_layout import LINE_TASKS, ReadingLayout, lines_from_views
from shared.deepseek_ocr.registry import kind_of
from shared.deepseek_ocr.second_reading import FEWEST_LINES, SURE, has_lost_text, other_sizes, prefers_second
from shared.images.canvases import LARGE_EM_PX, MOST_LINES, Strip
from shared.images.frames import without_frames
from shared.images.ink import find_ink, relief_of
from shared.images.levelling import levelled
from shared.images.page_ink import InkLine
from shared.images.page_lines import lines_of_page
from shared.images.strip_text import most_tokens
from trainer.evaluation.results import LAYOUT_KEY
from trainer.evaluation.samples import Layout, Sample, open_page, upright_size
from trainer.evaluation.scores import Reading
from trainer.reading.generation import Generated, batches_of_equal_plan, generate_texts
from trainer.reading.lines import confidence_of, read_lines
from trainer.reading.protocol import ReaderError

if TYPE_CHECKING:
    from PIL import Image

    from shared.deepseek_ocr.protocol import OcrModel
    from shared.deepseek_ocr.tokenizer import OcrTokenizer
    from trainer.reading.adapters import AttachedAdapter

MAX_NEW_TOKENS = {Layout.LINE: 256, Layout.BLOCK: 2048, Layout.PAGE: 4096}
"""More tokens than a page of this layout has, at one or two characters a token; limits a runaway answer's cost."""


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """Task, mode and limits of a reader."""

    task: Task = Task.FREE
    mode: Mode | None = None
    """None: the checkpoint's default."""
    batch_size: int = 8
    max_new_tokens: int | None = None
    """None: the limit for the page's layout."""
    layout: ReadingLayout = ReadingLayout.AUTO


class ModelReader:
    """Reads with a loaded model, in batches of pages with the same layout and plan."""

    def __init__(
        self,
        model: OcrModel,
        tokenizer: OcrTokenizer,
        geometry: GeometryConfig,
        name: str,
        options: ReadingOptions | None = None,
        weights_sha256: str | None = None,
        adapter_sha256: str | None = None,
    ) -> None:
        self._model = model
        weights = next(cast("torch.nn.Module", model).parameters())
        self._device, self._dtype = weights.device, weights.dtype
        self._tokenizer = tokenizer
        self._geometry = geometry
        self._name = name
        self._options = options or ReadingOptions()
        self._checksums = {"weights": weights_sha256, "adapter": adapter_sha256}
        is_possible = geometry.reads_lines and self._options.task in LINE_TASKS
        if self._options.layout is ReadingLayout.LINES and not is_possible:
            raise ReaderError(f"{name} cannot read by lines with the task {self._options.task}; use another layout")

    @property
    def name(self) -> str:
        """The checkpoint's name, or the adapter's."""
        return self._name

    @property
    def details(self) -> Mapping[str, str]:
        """Weights, adapter, device, type, threads, batch, prompt and limit."""
        device = self._device
        limit = self._options.max_new_tokens
        return {
            **{name: checksum for name, checksum in self._checksums.items() if checksum},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "dtype": str(self._dtype).removeprefix("torch."),
            **({"threads": str(torch.get_num_threads())} if device.type == "cpu" else {}),
            "batch": str(self._options.batch_size),
            "task": self._options.task.value,
            "mode": self._mode.value,
            **({"max_new_tokens": str(limit)} if limit else {}),
            **({} if self._options.layout is ReadingLayout.AUTO else {LAYOUT_KEY: self._options.layout.value}),
        }

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages in batches of one layout and one plan."""
        for layout in Layout:
            places = [place for place, sample in enumerate(samples) if sample.layout is layout]
            plans = [self._plan(samples[place]) for place in places]
            for batch in batches_of_equal_plan(plans, self._options.batch_size):
                readings = self._read_batch([samples[places[index]] for index in batch], plans[batch[0]])
                yield from ((places[index], reading) for index, reading in zip(batch, readings, strict=True))

    @property
    def _mode(self) -> Mode:
        return self._options.mode or self._geometry.default_mode

    def _plan(self, sample: Sample) -> ViewPlan:
        return plan_views(*upright_size(sample.image_path), self._mode, self._geometry)

    def _read_batch(self, samples: Sequence[Sample], plan: ViewPlan) -> list[Reading]:
        start = time.perf_counter()
        images = [self._open(sample) for sample in samples]
        if 0 < self._lines_from_views <= plan.num_views:
            return [self._read_by_lines(image) for image in images]
        pages = [self._whole(image, plan) for image in images]
        prints = [find_ink(image).lines for image in images]
        generated = generate_texts(
            self._model,
            self._tokenizer,
            pages,
            prompt_for(self._options.task, prompts=kind_of(self._model).prompts),
            self._options.max_new_tokens or MAX_NEW_TOKENS[samples[0].layout],
            self._device,
            self._options.batch_size,
            prints,
        )
        seconds = (time.perf_counter() - start) / len(samples)
        readings = [Reading(answer.text, seconds, answer.ended, answer.token_scores) for answer in generated]
        return [
            self._surest(image, plan, reading, lines)
            for image, reading, lines in zip(images, readings, prints, strict=True)
        ]

    @property
    def _lines_from_views(self) -> int:
        if self._options.task not in LINE_TASKS:
            return 0
        return lines_from_views(self._options.layout, self._geometry, is_base=self._checksums["adapter"] is None)

    def _open(self, sample: Sample) -> Image.Image:
        """A page as the service gives it to a model that reads lines."""
        image = open_page(sample.image_path)
        return without_frames(image, relief_of(image)) if self._lines_from_views else image

    def _whole(self, image: Image.Image, plan: ViewPlan, scale: float = 1.0) -> PageViews:
        if self._lines_from_views:
            image = levelled(image, relief_of(image))
        return PageViews(plan, *prepare_views(rescaled(image, scale), plan, self._geometry))

    def _read_by_lines(self, image: Image.Image) -> Reading:
        start = time.perf_counter()
        ink = find_ink(image)
        strips = lines_of_page(image) if ink.marks else ()
        plan = plan_views(image.width, image.height, self._mode, self._geometry)
        if not strips or (self._lines_from_views > 1 and is_crop(plan, strips)):
            # Read whole, as the service does.
            whole = self._generate([self._whole(image, plan)], MAX_NEW_TOKENS[Layout.PAGE], [ink.lines])[0]
            reading = Reading(whole.text, time.perf_counter() - start, whole.ended, whole.token_scores)
            return self._surest(image, plan, reading, ink.lines)
        return self._read_strips(image, strips, start)

    def _read_strips(self, image: Image.Image, strips: Sequence[Strip], start: float) -> Reading:
        answer = read_lines(
            strips,
            self._geometry,
            lambda views: self._generate(views, most_tokens(MOST_LINES)),
            lambda: lines_of_page(image, LARGE_EM_PX),
        )
        return Reading(answer.text, time.perf_counter() - start, True, answer.token_scores)

    def _surest(self, image: Image.Image, plan: ViewPlan, whole: Reading, lines: Sequence[InkLine]) -> Reading:
        """What was read whole, or in another form or at another size if that is surer, as the service does."""
        confidence = confidence_of(whole.text, whole.token_scores)
        if not self._lines_from_views or confidence >= SURE:
            return whole
        start = time.perf_counter() - whole.seconds
        has_lines = len(lines) >= FEWEST_LINES
        best = whole
        for other in self._readings_otherwise(image, plan, lines):
            found = confidence_of(other.text, other.token_scores)
            is_surer = other.text.strip() and prefers_second(confidence, found, is_by_lines=has_lines)
            if is_surer and (has_lines or not has_lost_text(best.text, other.text)):
                best, confidence = other, found
            if confidence >= SURE:
                break
        return replace(best, seconds=time.perf_counter() - start)

    def _readings_otherwise(self, image: Image.Image, plan: ViewPlan, lines: Sequence[InkLine]) -> Iterator[Reading]:
        """An image that was read whole by its lines, or at other sizes if it has few."""
        start = time.perf_counter()
        if len(lines) >= FEWEST_LINES:
            strips = lines_of_page(image)
            if strips:
                yield self._read_strips(image, strips, start)
            return
        for size in other_sizes(image.width, image.height, plan):
            read = self._generate([self._whole(image, plan, size)], MAX_NEW_TOKENS[Layout.BLOCK], [lines])[0]
            yield Reading(read.text, time.perf_counter() - start, read.ended, read.token_scores)

    def _generate(
        self, views: Sequence[PageViews], most: int, prints: Sequence[Sequence[InkLine]] | None = None
    ) -> Sequence[Generated]:
        prompt = prompt_for(self._options.task, prompts=kind_of(self._model).prompts)
        limit = self._options.max_new_tokens or most
        return generate_texts(
            self._model, self._tokenizer, views, prompt, limit, self._device, self._options.batch_size, prints
        )


class BaseReader:
    """Reads with the base model, while its adapter is switched off."""

    def __init__(self, reader: ModelReader, attached: AttachedAdapter) -> None:
        self._reader = reader
        self._attached = attached

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self._reader.name

    @property
    def details(self) -> Mapping[str, str]:
        """The same as the reader's, which has no adapter."""
        return self._reader.details

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages as `ModelReader` does."""
        with self._attached.base_alone():
            yield from self._reader.read(samples)
