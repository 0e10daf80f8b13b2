"""Rendered pages between the processes that draw them and the device that reads them.

Drawing is slower than training, so each page is drawn once as clean ink, kept compressed in memory, and used
several times with fresh degradation. Worker processes draw; a thread of the training process collects; batches are
built in threads (decompression releases the interpreter's lock).
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shared.images.canvases import BAND_PX, LOW_PX
from trainer.nano.training.recipe import TIERS

if TYPE_CHECKING:
    from torch import Tensor

TEXT_BUCKETS = (48, 128, 256, 448, 704, 1024, 1536, 2048, 2560, 3072)
"""Answer lengths in tokens that batches are padded to."""
BAND_HEIGHTS_PX = (BAND_PX, LOW_PX)
"""Of views without their padding, as a CPU encodes pages of one view."""
Bucket = tuple[int, int, int, int]
"""Columns and rows of the grid, padded answer length, and the lowest band that holds the page; 0: none does."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One drawn page: compressed ink on its paper, its answer's tokens (uint16), and its marks (uint16 triples)."""

    tier: int
    columns: int
    rows: int
    width_px: int
    height_px: int
    ink: bytes
    tokens: bytes
    marks: bytes

    @property
    def bucket(self) -> Bucket | None:
        """What pages of a batch share; None when the answer is too long for all lengths."""
        length = len(self.tokens) // 2
        padded = next((size for size in TEXT_BUCKETS if length <= size), None)
        band_px = 0 if self.columns else next((px for px in BAND_HEIGHTS_PX if self.height_px <= px), 0)
        return None if padded is None else (self.columns, self.rows, padded, band_px)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of one grid, or bands of views.

    Attributes:
        top_px: where a band begins in its view, which is as wide; None: these are whole grids.

    Shapes:
        ink_BHW: uint8, 255 where nothing is printed, canvas of the whole grid or of the band
        paper_B4: float32, each paper's x0, y0, x1, y1 on the canvas
        answer_BT: int64, tokens with the end token, -100 where padded
        marks_M4: int64, every character of the batch: page, x and y on the canvas in pixels, index in the charset
    """

    columns: int
    rows: int
    tier: str
    ink_BHW: Tensor
    paper_B4: Tensor
    answer_BT: Tensor
    marks_M4: Tensor
    top_px: int | None = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a draw function gives.

    Shapes:
        ink_HW: uint8, 255 where nothing is printed
        marks_N3: uint16, x and y in pixels and index in the charset of each character
    """

    ink_HW: np.ndarray
    marks_N3: np.ndarray
    tokens: list[int]
    columns: int
    rows: int

    def packed(self, tier: str) -> Sample:
        """Compress into a sample of the pool."""
        packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
        ink = packer.compress(self.ink_HW.tobytes()) + packer.flush()
        height, width = self.ink_HW.shape
        answer = np.asarray(self.tokens, np.uint16).tobytes()
        marks = self.marks_N3.astype(np.uint16).tobytes()
        return Sample(TIERS.index(tier), self.columns, self.rows, width, height, ink, answer, marks)


DrawFunction = Callable[[str, int], Drawing]
"""Tier and longest line to a drawing; its tokens include the end token."""


def _draw_forever(make_draw: Callable[[int], DrawFunction], seed: int, out: object, weights: object) -> None:
    """A worker's life: draw by the current tier weights, send in parcels."""
    if hasattr(os, "nice"):
        os.nice(10)  # the process that feeds the device goes first where cores are short
    draw = make_draw(seed)
    rng = random.Random(seed)
    while True:
        parcel = []
        for _ in range(16):
            *tier_weights, longest = list(weights)  # type: ignore[call-overload]
            tier = rng.choices(range(len(TIERS)), tier_weights)[0]
            parcel.append(draw(TIERS[tier], int(longest)).packed(TIERS[tier]))
        out.put(parcel)  # type: ignore[attr-defined]


class RenderPool:
    """Workers that draw and the pages they drew; `close` ends the workers."""

    def __init__(
        self,
        make_draw: Callable[[int], DrawFunction],
        num_workers: int,
        max_reuse: int,
        seed: int,
        max_held: int = 8_000,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._weights = context.Array("d", [1.0] + [0.0] * (len(TIERS) - 1) + [24.0], lock=False)
        self._parcels = context.Queue(maxsize=256)
        self._max_reuse = max_reuse
        self._max_held = max_held
        self._renewing = threading.Event()
        self._pages: dict[tuple[int, Bucket], list[list[object]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._rng = random.Random(seed)
        self.drawn = 0
        self.dropped = 0
        self._workers = [
            context.Process(
                target=_draw_forever, args=(make_draw, seed * 1000 + i, self._parcels, self._weights), daemon=True
            )
            for i in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()
        self._closing = threading.Event()
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def want(self, tier_weights: Mapping[str, float], longest: int) -> None:
        """What to draw from now on: shares of pages by tier, and the longest line in characters."""
        self._weights[:] = [tier_weights.get(t, 0.0) for t in TIERS] + [float(longest)]

    def renew(self) -> None:
        """From now on draw without end: a new page takes an old one's place in a full bucket.

        Before that, drawing pauses once `max_held` pages wait, and leaves the processor to the compiler.
        """
        self._renewing.set()

    def close(self) -> None:
        """End the workers and the collector."""
        self._closing.set()
        for worker in self._workers:
            worker.terminate()
        self._collector.join(timeout=5)

    def counts(self) -> dict[str, int]:
        """Pages held, by tier."""
        with self._lock:
            held = dict.fromkeys(TIERS, 0)
            for (tier, _), pages in self._pages.items():
                held[TIERS[tier]] += len(pages)
        return held

    def take(self, tier: int, count_for: Callable[[Bucket], int]) -> list[Sample] | None:
        """A batch's pages of one bucket of a tier, or None while no bucket holds enough.

        Buckets are chosen by how many batches they hold, so that batches follow what was drawn.
        """
        with self._lock:
            buckets = [
                (bucket, pages)
                for (t, bucket), pages in self._pages.items()
                if t == tier and len(pages) >= count_for(bucket)
            ]
            if not buckets:
                return None
            bucket, pages = self._rng.choices(buckets, [len(p) / count_for(b) for b, p in buckets])[0]
            chosen = self._rng.sample(range(len(pages)), count_for(bucket))
            samples = [pages[i][0] for i in chosen]
            for i in sorted(chosen, reverse=True):
                pages[i][1] += 1  # type: ignore[operator]
                if pages[i][1] >= self._max_reuse and len(pages) > 4 * len(chosen):  # type: ignore[operator]
                    pages[i] = pages[-1]
                    pages.pop()
        return samples  # type: ignore[return-value]

    def _collect(self) -> None:
        while not self._closing.is_set():
            if not self._renewing.is_set() and sum(self.counts().values()) >= self._max_held:
                self._closing.wait(0.05)  # the workers wait behind a full queue
                continue
            try:
                parcel = self._parcels.get(timeout=1)
            except queue.Empty:
                self._check_workers()
                continue
            with self._lock:
                for sample in parcel:
                    self.drawn += 1
                    if sample.bucket is None:
                        self.dropped += 1
                        continue
                    pages = self._pages[sample.tier, sample.bucket]
                    if len(pages) < self._max_held:
                        pages.append([sample, 0])
                    else:
                        pages[self._rng.randrange(len(pages))] = [sample, 0]

    def _check_workers(self) -> None:
        dead = [w for w in self._workers if w.exitcode is not None]
        if dead and not self._closing.is_set():
            raise RuntimeError(f"{len(dead)} drawing processes ended, first exit code {dead[0].exitcode}")

    @property
    def failed(self) -> bool:
        """Whether drawing has stopped; the training loop must stop too."""
        return not self._collector.is_alive()


def build_batch(samples: list[Sample], side_px: int, top_px: int | None = None, square_px: int = 1) -> Batch:
    """Decompress pages of one bucket onto their canvases, centred, or onto a band of a view.

    Args:
        samples: the pages.
        side_px: of a view.
        top_px: where their bucket's band begins in the view, a multiple of `square_px`; None: views are whole.
        square_px: side of what a vision token shows; a page begins in a band's first row of them.

    Returns:
        The batch, pinned where there is a GPU.
    """
    first = samples[0]
    bucket = first.bucket
    assert bucket is not None
    columns, rows, length, band_px = bucket
    W, H = max(columns, 1) * side_px, max(rows, 1) * side_px
    if top_px is not None:
        H = band_px
    ink = np.full((len(samples), H, W), 255, np.uint8)
    paper = np.zeros((len(samples), 4), np.float32)
    answer = np.full((len(samples), length), -100, np.int64)
    marks = []
    for i, sample in enumerate(samples):
        page = np.frombuffer(zlib.decompress(sample.ink, -15), np.uint8).reshape(sample.height_px, sample.width_px)
        x0, y0 = (W - sample.width_px) // 2, (H - sample.height_px) // 2
        if top_px is not None:
            # Canvases of lines begin where a row of tokens does, other images wherever the middle has them.
            above = 0 if TIERS[sample.tier] == "lines" else (side_px - sample.height_px) // 2 % square_px
            y0 = min(above, H - sample.height_px)
        ink[i, y0 : y0 + sample.height_px, x0 : x0 + sample.width_px] = page
        paper[i] = (x0, y0, x0 + sample.width_px, y0 + sample.height_px)
        tokens = np.frombuffer(sample.tokens, np.uint16)
        answer[i, : len(tokens)] = tokens
        x_y_c = np.frombuffer(sample.marks, np.uint16).reshape(-1, 3).astype(np.int64)
        marks.append(np.concatenate([np.full((len(x_y_c), 1), i), x_y_c + np.array((x0, y0, 0))], 1))
    import torch  # not by the processes that draw: it takes most of their start

    tensors = [torch.from_numpy(array) for array in (ink, paper, answer, np.concatenate(marks))]
    if torch.cuda.is_available():  # from pageable memory each copy would wait for the device's previous step
        tensors = [tensor.pin_memory() for tensor in tensors]
    ink_BHW, paper_B4, answer_BT, marks_M4 = tensors
    return Batch(columns, rows, TIERS[first.tier], ink_BHW, paper_B4, answer_BT, marks_M4, top_px)


def band_top(band_px: int, side_px: int, square_px: int) -> int:
    """Top of the band of a page as high as the band, in the middle of its view, rounded down to a row of tokens."""
    return (side_px - band_px) // 2 // square_px * square_px


class BatchStream:
    """Batches by the current tier weights, built ahead in threads.

    Args:
        pool: where pages come from.
        side_px: of a view.
        square_px: side of what a vision token shows.
        views_per_batch: views in a batch at most; a batch of bands has as many as have the same area.
        band_share: share of batches of low views that are encoded as bands.
        threads: that build batches.
        seed: of tiers and places.
    """

    def __init__(
        self,
        pool: RenderPool,
        side_px: int,
        square_px: int,
        views_per_batch: int,
        band_share: float = 0.0,
        threads: int = 4,
        seed: int = 0,
    ) -> None:
        self._pool = pool
        self._side_px = side_px
        self._square_px = square_px
        self._views_per_batch = views_per_batch
        self._band_share = band_share
        self._weights: Mapping[str, float] = {"line": 1.0}
        self._ready: queue.Queue[Batch] = queue.Queue(maxsize=6)
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._build, args=(random.Random(seed + i),), daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def want(self, tier_weights: Mapping[str, float]) -> None:
        """Shares of batches by tier from now on."""
        self._weights = dict(tier_weights)

    def __iter__(self) -> Iterator[Batch]:
        """Give batches until the pool fails.

        Yields:
            Batches as they get ready.

        Raises:
            RuntimeError: Drawing has stopped.
        """
        while True:
            try:
                yield self._ready.get(timeout=5)
            except queue.Empty:
                if self._pool.failed:
                    raise RuntimeError("drawing has stopped; see the message above") from None

    def close(self) -> None:
        """End the threads."""
        self._closing.set()

    def _pages_for(self, bucket: Bucket) -> int:
        columns, rows, _, _ = bucket
        return max(1, self._views_per_batch // (columns * rows + 1))

    def _pages_by_bands(self, bucket: Bucket) -> int:
        return self._pages_for(bucket) * (self._side_px // bucket[3] if self._has_bands(bucket) else 1)

    def _has_bands(self, bucket: Bucket) -> bool:
        return 0 < bucket[3] < self._side_px

    def _build(self, rng: random.Random) -> None:
        while not self._closing.is_set():
            tiers, weights = zip(*self._weights.items(), strict=True)
            by_bands = rng.random() < self._band_share
            count_for = self._pages_by_bands if by_bands else self._pages_for
            samples = self._pool.take(TIERS.index(rng.choices(tiers, weights)[0]), count_for)
            if samples is None:
                self._closing.wait(0.02)
                continue
            bucket, top_px = samples[0].bucket, None
            assert bucket is not None
            if by_bands and self._has_bands(bucket):
                # A page in the middle of its view begins in one of these rows of tokens, which depends on its height.
                top_px = band_top(bucket[3], self._side_px, self._square_px) + rng.randrange(3) * self._square_px
            batch = build_batch(samples, self._side_px, top_px, self._square_px)
            while not self._closing.is_set():
                try:
                    self._ready.put(batch, timeout=1)
                    break
                except queue.Full:
                    continue
