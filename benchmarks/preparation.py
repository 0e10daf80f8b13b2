"""From images to prepared pages: in worker processes, by the engine's device, or one after another in the caller.

A worker keeps the decoded images, as the service's decoding processes do, and writes views into memory that it shares
with the caller: only numbers travel through a pipe. Knows no engine.
"""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.pool import Pool
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, ViewPlan, plan_views
from shared.deepseek_ocr.images import prepare_views


class Preparation(Protocol):
    """Makes pages from images that it was given."""

    name: str

    def pages(self, size_px: tuple[int, int], count: int) -> Iterator[PreparedPage]:
        """So many pages of the images of a size, in order, each as soon as it is ready."""

    def close(self) -> None:
        """End what it started."""


class InlinePreparation:
    """One page after another, on the caller's thread."""

    name = "inline"

    def __init__(self, images: dict[tuple[int, int], list[Image.Image]], geometry: GeometryConfig) -> None:
        self._images = images
        self._geometry = geometry

    def pages(self, size_px: tuple[int, int], count: int) -> Iterator[PageViews]:
        """See `Preparation`."""
        images = self._images[size_px]
        plan = plan_of(size_px, self._geometry)
        for index in range(count):
            yield PageViews(plan, *prepare_views(images[index % len(images)], plan, self._geometry))

    def close(self) -> None:
        """Nothing to end."""


class DevicePreparation:
    """Hands the images to the engine, which makes their views on its device, as it does for the service."""

    name = "device"

    def __init__(self, images: dict[tuple[int, int], list[Image.Image]], geometry: GeometryConfig) -> None:
        self._images = images
        self._geometry = geometry

    def pages(self, size_px: tuple[int, int], count: int) -> Iterator[PreparedPage]:
        """See `Preparation`."""
        images = self._images[size_px]
        plan = plan_of(size_px, self._geometry)
        for index in range(count):
            # Copied out of Pillow's memory within the measured time, as a decoding process does.
            yield PageImage(plan, np.asarray(images[index % len(images)]))

    def close(self) -> None:
        """Nothing to end."""


class ProcessPreparation:
    """Pages from worker processes, which are forked at once: make it before anything touches a GPU.

    Invariant: a page's pixels lie in a slot of their own until `pages` is called again. `most_pages` is the maximum of
    one call, by size.
    """

    name = "processes"

    def __init__(
        self,
        images: dict[tuple[int, int], list[Image.Image]],
        geometry: GeometryConfig,
        workers: int,
        most_pages: dict[tuple[int, int], int],
    ) -> None:
        self._geometry = geometry
        room = max((plan_bytes(plan_of(size, geometry)) * count for size, count in most_pages.items()), default=1)
        # Anonymous memory shared by inheritance: its size is not bounded by the mount that named segments live on.
        self._arena = mmap.mmap(-1, room)
        self._pool: Pool = multiprocessing.get_context("fork").Pool(
            workers, initializer=_become_worker, initargs=(images, geometry, self._arena)
        )

    def pages(self, size_px: tuple[int, int], count: int) -> Iterator[PreparedPage]:
        """See `Preparation`."""
        plan = plan_of(size_px, self._geometry)
        for slot in self._pool.imap(_prepare_slot, [(size_px, index) for index in range(count)]):
            yield PageViews(plan, *views_in(self._arena, plan, slot))

    def close(self) -> None:
        """End the workers."""
        self._pool.terminate()
        self._pool.join()


def plan_of(size_px: tuple[int, int], geometry: GeometryConfig) -> ViewPlan:
    """Views of an image in the checkpoint's default mode."""
    return plan_views(*size_px, geometry.default_mode, geometry)


def plan_bytes(plan: ViewPlan) -> int:
    """Memory that a page's views take."""
    return 3 * (plan.global_px**2 + plan.num_tiles * plan.tile_px**2)


def views_in(arena: mmap.mmap, plan: ViewPlan, slot: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A slot's global view and tiles, as arrays over the arena."""
    size = plan_bytes(plan)
    flat = np.frombuffer(arena, np.uint8, size, slot * size)
    cut = 3 * plan.global_px**2
    return (
        flat[:cut].reshape(plan.global_px, plan.global_px, 3),
        flat[cut:].reshape(plan.num_tiles, plan.tile_px, plan.tile_px, 3),
    )


_worker: tuple[dict[tuple[int, int], list[Image.Image]], GeometryConfig, mmap.mmap] | None = None


def _become_worker(
    images: dict[tuple[int, int], list[Image.Image]], geometry: GeometryConfig, arena: mmap.mmap
) -> None:
    global _worker  # noqa: PLW0603 - a pool's workers have no other place for what they keep
    _worker = images, geometry, arena


def _prepare_slot(order: tuple[tuple[int, int], int]) -> int:
    assert _worker
    images, geometry, arena = _worker
    size_px, slot = order
    plan = plan_of(size_px, geometry)
    of_size: Sequence[Image.Image] = images[size_px]
    global_HWC, tiles_THWC = prepare_views(of_size[slot % len(of_size)], plan, geometry)
    to_global, to_tiles = views_in(arena, plan, slot)
    to_global[:] = global_HWC
    to_tiles[:] = tiles_THWC
    return slot
