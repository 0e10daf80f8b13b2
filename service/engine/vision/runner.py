"""Encodes views of many requests to tokens on a CUDA device, without waiting for it.

Owns copying pixels to the device, splitting into batches, and captured graphs for small batches. Cost of a batch: at
most `CHUNK_PATCHES` patches are encoded at once, and a patch takes about 13 KB of scratch in bf16 at public dimensions
(per channel of 768 its stream, its norm, query, key, value and the attention's result; per head and row and column of
the grid its bias): 0.8 GiB on top of the weights for a full chunk (0.70 GiB seen for 16 PAGE on an H100). Captured
graphs share scratch of the same size, which they keep.

Shape letters: V views, P pixels, N tokens of a view, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.engine.runner import View
from service.engine.vision.encoder import VisionEncoder
from service.engine.vision.queries import QueryVisionEncoder
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.registry import SecondEncoder, kind_of

_ENCODERS: Mapping[SecondEncoder | None, type[VisionEncoder | QueryVisionEncoder]] = {
    SecondEncoder.CLIP: VisionEncoder,
    SecondEncoder.QUERIES: QueryVisionEncoder,
}

CHUNK_PATCHES = 65_536
"""Patches encoded at once: 16 views of 1024 px, or 40 of 640 px. H100: 299 TFLOP/s with 8 of 640 px, 326 with 32."""
EVERY_COUNT_PATCHES, STEP_PATCHES = 16_384, 6_400
"""Batches are captured for each number of views up to the first (10 of 640 px, 4 of 1024 px), then in steps of the
second (4 of 640 px, 1 of 1024 px) up to a chunk.

32 views of 640 px without a graph keep an H100's host busy for 24 ms, the copy of their pixels included; one view with
a graph does for 0.4 ms. On a H200 (de9a6fa, see `kernels.launch`) fewer than 16 views of 640 px are bound by the host
without a graph, at 13 to 17 ms (captured 2.3 to 13). A graph for every number of them would take 40 graphs instead of
18 and save 4.3 % of the mean time, steps of 8 views would add 0.3 %; views of 1024 px have one for every number."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """Graphs for views of one size, by number of views, and the memory they read and write."""

    graphs: dict[int, torch.cuda.CUDAGraph]
    views_VPPC: Tensor
    tokens_VND: Tensor


class GpuVision:
    """Encodes views in batches of one size.

    Calls only enqueue work on the current stream, so work on that stream that reads the result runs after it; all
    calls belong on one stream. Works on a CPU as well, in plain torch, where tests use it.

    Args:
        model: In evaluation mode, on its device; its vision weights must stay as they are.
        chunk_patches: Patches encoded at once, at most; at least those of one view.
        graphs: Whether `warm_up` captures graphs, where that is possible.
        kernels: Set of kernels; None: the fused ones on CUDA in 16 bits, plain torch elsewhere.
        is_fp8: Whether the encoders' large products are in FP8, see `layers`; plain torch emulates them.
    """

    def __init__(
        self,
        model: OcrModel,
        *,
        chunk_patches: int = CHUNK_PATCHES,
        graphs: bool = True,
        kernels: ModuleType | None = None,
        is_fp8: bool = False,
    ) -> None:
        self._device: torch.device = model.lm_head.weight.device
        self._on_cuda = self._device.type == "cuda"
        self._chunk_patches = chunk_patches
        self._patch_px = model.geometry.patch_px
        encoder = _ENCODERS.get(kind_of(model).second_encoder)
        self._capturable = graphs and self._on_cuda and encoder is not None
        self._encode_batch: Callable[[Tensor], Tensor] = model.encode_views
        if encoder is not None:
            kernels = kernels or _kernels_for(self._device, model.lm_head.weight.dtype)
            self._encode_batch = encoder(model, kernels, is_fp8=is_fp8).encode
        self._captured: dict[int, _Captured] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def encode(self, views: Sequence[View]) -> list[Tensor]:
        """Encode views, those of one size together.

        Args:
            views: in any order of sizes, on the host or on the device.

        Returns:
            `[N, D]` for each view, in their order; fresh memory, on the device.
        """
        tokens: list[Tensor | None] = [None] * len(views)
        for side_px, indices in _by_size(views).items():
            captured = self._captured.get(side_px)
            counts = list(captured.graphs) if captured else []
            first = 0
            for count in split_batch(len(indices), counts, self._chunk(side_px)):
                part = indices[first : first + count]
                first += count
                encoded_VND = self._encode_part([views[index] for index in part], side_px)
                for index, tokens_ND in zip(part, encoded_VND.unbind(0), strict=True):
                    tokens[index] = tokens_ND
        return [tokens_ND for tokens_ND in tokens if tokens_ND is not None]

    @torch.inference_mode()
    def warm_up(self, sides_px: Sequence[int]) -> None:
        """Compile what views of these sizes need and capture their graphs; waits for the device.

        Args:
            sides_px: sizes of views that will come.
        """
        for side_px in sides_px:
            self._encode_part([np.zeros((side_px, side_px, 3), np.uint8)], side_px)
            if self._capturable and side_px not in self._captured:
                self._captured[side_px] = self._capture(side_px)
        if self._on_cuda:
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def rehearse(self, sides_px: Sequence[int]) -> None:
        """Encode every number of views that will be captured; for `launch.compiling_ahead`.

        Args:
            sides_px: sizes of views that will come.
        """
        for side_px in sides_px:
            counts = captured_counts(self._patches(side_px), self._chunk(side_px)) if self._capturable else [1]
            for count in counts:
                views_VPPC = torch.zeros((count, side_px, side_px, 3), dtype=torch.uint8, device=self._device)
                self._encode_batch(views_VPPC)

    def _chunk(self, side_px: int) -> int:
        """Views of a size that are encoded at once, at most."""
        return max(1, self._chunk_patches // self._patches(side_px))

    def _patches(self, side_px: int) -> int:
        return int((side_px // self._patch_px) ** 2)

    def _encode_part(self, views: Sequence[View], side_px: int) -> Tensor:
        """Views of one size, as many as a chunk holds: `[V, N, D]`."""
        captured = self._captured.get(side_px)
        if captured is None or len(views) not in captured.graphs:
            batch_VPPC = torch.empty((len(views), side_px, side_px, 3), dtype=torch.uint8, device=self._device)
            self._fill(batch_VPPC, views)
            return self._encode_batch(batch_VPPC)
        # The stream keeps the order: what an earlier replay reads is read before it is overwritten here.
        self._fill(captured.views_VPPC[: len(views)], views)
        captured.graphs[len(views)].replay()
        return captured.tokens_VND[: len(views)].clone()

    def _fill(self, batch_VPPC: Tensor, views: Sequence[View]) -> None:
        """Put views into a batch on the device, those of the host through pinned memory in one copy."""
        on_device = [view for view in views if isinstance(view, Tensor)]
        if len(on_device) == len(views):
            torch.stack(on_device, out=batch_VPPC)
            return
        if on_device:
            # A step with pages of both forms; rare enough to copy one after another.
            for index, view in enumerate(views):
                self._fill(batch_VPPC[index : index + 1], [view])
            return
        # Torch's allocator of pinned memory does not give a block out again before the copy from it is over.
        staged_VPPC = torch.empty(batch_VPPC.shape, dtype=torch.uint8, pin_memory=self._on_cuda)
        staged = staged_VPPC.numpy()
        for index, view in enumerate(views):
            staged[index] = view
        batch_VPPC.copy_(staged_VPPC, non_blocking=True)

    def _capture(self, side_px: int) -> _Captured:
        """Capture graphs for views of a size; their scratch memory is shared, for they never run at once."""
        counts = captured_counts(self._patches(side_px), self._chunk(side_px))
        views_VPPC = torch.zeros((counts[-1], side_px, side_px, 3), dtype=torch.uint8, device=self._device)
        tokens_VND = torch.empty_like(self._encode_batch(views_VPPC))
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graphs: dict[int, torch.cuda.CUDAGraph] = {}
        for count in reversed(counts):  # the largest first, so that the others fit into its memory
            # Once outside of the capture, because kernels compile and convolutions choose their algorithm.
            self._encode_batch(views_VPPC[:count])
            torch.cuda.synchronize(self._device)
            graphs[count] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[count], pool=self._pool, capture_error_mode="thread_local"):
                tokens_VND[:count].copy_(self._encode_batch(views_VPPC[:count]))
        return _Captured(graphs=graphs, views_VPPC=views_VPPC, tokens_VND=tokens_VND)


def captured_counts(patches: int, chunk: int) -> list[int]:
    """Numbers of views to capture.

    Args:
        patches: patches of a view.
        chunk: views that are encoded at once, at most.

    Returns:
        Ascending, from 1 to `chunk`.
    """
    every = min(chunk, max(1, EVERY_COUNT_PATCHES // patches))
    stepped = range(every, chunk, max(1, STEP_PATCHES // patches))
    return sorted({*range(1, every + 1), *stepped, chunk})


def split_batch(views: int, captured: Sequence[int], chunk: int) -> list[int]:
    """Cut a number of views into batches: as captured, the largest first, or else into chunks.

    Args:
        views: views of one size.
        captured: numbers of views that graphs exist for, 1 among them; may be empty.
        chunk: views that are encoded at once, at most.

    Returns:
        Sizes of the batches; their sum is `views`.
    """
    batches = []
    while views:
        batches.append(max((count for count in captured if count <= views), default=min(chunk, views)))
        views -= batches[-1]
    return batches


def _by_size(views: Sequence[View]) -> dict[int, list[int]]:
    """Indices of the views of each size, largest views first: smaller ones then fit into memory that was freed."""
    groups: dict[int, list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.shape[0], []).append(index)
    return dict(sorted(groups.items(), reverse=True))


def _kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The fused kernels need tensor cores of 16 bits: in float32 they take minutes to compile."""
    if device.type == "cuda" and dtype.itemsize == 2:
        from service.engine.kernels.triton import vision as vision_fused

        return vision_fused
    from service.engine.kernels.reference import vision as vision_reference

    return vision_reference
