"""Makes the encoder's views on the device: images are copied there and resized.

Copies go through one ring of pinned memory of fixed size, as pinned memory is slow to allocate and never returned.
They are enqueued on the current stream; the host waits only when the ring wraps around to a copy that is still
pending, and by then the device has several images' worth of work queued. Used by the engine's single thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.gpu.reports import wait_for
from service.engine.runner import View
from service.engine.vision.resize import prepare_views_on_device
from shared.deepseek_ocr.forms import CHANNELS, MAX_IMAGE_PIXELS, PageImage, PageViews, PreparedPage, without_copies
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan, place_global, place_tiles, plan_views

STAGING_BYTES = 2 * CHANNELS * MAX_IMAGE_PIXELS
"""Two of the largest images, 8 of A4 at 150 dots per inch. With memory for 1, 2, 4, 8 and 16 of them an engine reads
55, 53, 55, 54 and 55 pages of 9 megapixels a second, of A4 84 to 87: it is no bound (H200, de9a6fa, see
`kernels.launch`)."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A part of the memory that is being copied from, until the event has come."""

    first: int
    end: int
    event: torch.cuda.Event


class Preparation:
    """Makes views right before they are encoded, one page after another, on the current stream.

    So a page's image and what lies between the two passes of its resize are the next page's memory again; only views
    wait for the encoder. `memory.PREPARATION_BYTES` accounts for both.

    Args:
        device: Where views are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._staging = Staging(device)

    @torch.inference_mode()
    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[View]:
        """All views of a page.

        Args:
            page: In either form.
            geometry: The checkpoint's.

        Returns:
            `[px, px, 3]` each, the global one first: on the device those of an image, else where they were.
        """
        if isinstance(page, PageViews):
            return [page.global_view_HWC, *page.tiles_THWC]
        image_HWC = self._staging.upload(page.image_HWC)
        global_view_HWC, tiles_THWC = prepare_views_on_device(image_HWC, page.plan, geometry)
        return [global_view_HWC, *tiles_THWC.unbind(0)]

    @staticmethod
    def most_bytes(width_px: int, height_px: int, plan: ViewPlan, geometry: GeometryConfig) -> int:
        """Device memory that preparing an image takes at most: itself, what lies between two passes, its views."""
        placements = [place_global(width_px, height_px, plan, geometry)]
        if plan.num_tiles:
            placements.append(place_tiles(width_px, height_px, plan, geometry))
        between = max(max(height_px * at.content_width_px, width_px * at.content_height_px) for at in placements)
        views = sum(at.canvas_width_px * at.canvas_height_px for at in placements)
        return CHANNELS * (width_px * height_px + between + views)

    def warm_up(self) -> None:
        """Take the pinned memory and compile what resizing needs."""
        # Enlarged along both sides, so that both of the kernel's variants are met.
        geometry = GeometryConfig()
        self.prepare(PageImage(plan_views(4, 4, Mode.BASE, geometry), np.zeros((4, 4, 3), np.uint8)), geometry)


class Staging:
    """Sends images to a device; on a CPU it copies them.

    Invariant: `_copies` are all copies that may still be under way, oldest first, and none overlaps another.

    Args:
        device: Where images go.
        num_bytes: At most so much of them is under way.
    """

    def __init__(self, device: torch.device, num_bytes: int = STAGING_BYTES) -> None:
        self._device = device
        self._num_bytes = num_bytes
        self._buffer: Tensor | None = None
        self._next = 0
        self._copies: deque[_Copy] = deque()

    def upload(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Enqueue a copy to the device.

        Args:
            pixels: No more bytes than fit in at once; free to change when this returns.

        Returns:
            A tensor of the same shape.
        """
        # One colour is repeated on the device: on the host that would take as long as all the rest.
        shape, pixels = pixels.shape, without_copies(pixels)
        out = torch.empty(pixels.shape, dtype=torch.uint8, device=self._device)
        if self._device.type != "cuda":
            np.copyto(out.numpy(), pixels)
            return out.expand(shape).contiguous()
        if self._buffer is None:
            self._buffer = torch.empty(self._num_bytes, dtype=torch.uint8, pin_memory=True)
        first = self.reserve(pixels.nbytes)
        staged = self._buffer[first : first + pixels.nbytes].view(pixels.shape)
        np.copyto(staged.numpy(), pixels)
        out.copy_(staged, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        self.note(first, pixels.nbytes, event)
        return out.expand(shape).contiguous()

    def reserve(self, num_bytes: int) -> int:
        """Where the next bytes may be written; waits until nothing is copied from there any more."""
        assert num_bytes <= self._num_bytes
        first = self._next if self._next + num_bytes <= self._num_bytes else 0
        self._next = first + num_bytes
        # Copies finish in order, so it is enough to wait for the newest one in the way.
        in_the_way = [index for index, copy in enumerate(self._copies) if copy.first < self._next and first < copy.end]
        for _ in range(in_the_way[-1] + 1 if in_the_way else 0):
            wait_for(self._copies.popleft().event)
        while self._copies and self._copies[0].event.query():
            self._copies.popleft()
        return first

    def note(self, first: int, num_bytes: int, event: torch.cuda.Event) -> None:
        """A copy from there is under way until the event comes."""
        self._copies.append(_Copy(first, first + num_bytes, event))
