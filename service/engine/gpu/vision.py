"""Views of many requests to tokens on a CUDA device, without ever waiting for it.

Owns the way of the pixels to the device, the cut into batches, and the captured graphs for small ones. What a batch
costs: at most `CHUNK_PATCHES` patches are encoded at once, and a patch takes about 13 KB of scratch in bf16 at public
dimensions (per channel of 768 its stream, its norm, query, key, value and the attention's result; per head and row and
column of the grid its bias), so encoding takes at most 0.85 GiB beside weights (computed, not measured yet).

Shape letters: V views, P pixels, N tokens of a view, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.gpu.vision_encoder import VisionEncoder, can_pack_vision
from shared.deepseek_ocr.protocol import OcrModel

CHUNK_PATCHES = 65_536
"""Patches encoded at once: 16 views of 1024 px, or 40 of 640 px. Not measured yet."""
GRAPH_PATCHES = 16_384
"""Batches up to this size are captured, one graph for each number of views: up to 10 of 640 px, 4 of 1024 px. Larger
ones take longer on the device than their launches take on the host. Not measured yet."""

View = NDArray[np.uint8] | Tensor
"""`[px, px, 3]`, uint8, RGB; on the host, or already on the device."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """Graphs for views of one size, by number of views, and the memory they read and write."""

    graphs: list[torch.cuda.CUDAGraph]
    views_VPPC: Tensor
    tokens_VND: Tensor


class GpuVision:
    """Encodes views in batches of one size.

    Calls only enqueue work on the current stream, so that whatever reads the result on that stream is in order; all
    calls belong on one stream. Works on a CPU as well, in plain torch, where tests use it.

    Args:
        model: In evaluation mode, on its device; its vision weights must stay as they are.
        chunk_patches: Patches encoded at once, at most; at least those of one view.
        graph_patches: Patches up to which `warm_up` captures graphs; 0: none.
        kernels: Set of kernels; None: the fused ones on CUDA in 16 bits, plain torch elsewhere.
    """

    def __init__(
        self,
        model: OcrModel,
        *,
        chunk_patches: int = CHUNK_PATCHES,
        graph_patches: int = GRAPH_PATCHES,
        kernels: ModuleType | None = None,
    ) -> None:
        self._device: torch.device = model.lm_head.weight.device
        self._on_cuda = self._device.type == "cuda"
        self._chunk_patches = chunk_patches
        self._graph_patches = graph_patches if self._on_cuda else 0
        self._patch_px: int = getattr(getattr(model.config, "sam_config", None), "patch_size", 16)
        self._encode_batch: Callable[[Tensor], Tensor] = model.encode_views
        if can_pack_vision(model):
            self._encode_batch = VisionEncoder(
                model, kernels or _kernels_for(self._device, model.lm_head.weight.dtype)
            ).encode
        else:
            self._graph_patches = 0
        self._captured: dict[int, _Captured] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def encode(self, views: Sequence[View]) -> list[Tensor]:
        """Encode views, those of one size together.

        Args:
            views: in any order of sizes; all on the host, or all on the device.

        Returns:
            `[N, D]` for each view, in their order; fresh memory, on the device.
        """
        tokens: list[Tensor | None] = [None] * len(views)
        for side_px, indices in _by_size(views).items():
            chunk = max(1, self._chunk_patches // self._patches(side_px))
            for first in range(0, len(indices), chunk):
                part = indices[first : first + chunk]
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
            most = self._graph_patches // self._patches(side_px)
            if most and side_px not in self._captured:
                self._captured[side_px] = self._capture(side_px, most)
        if self._on_cuda:
            torch.cuda.synchronize(self._device)

    def _patches(self, side_px: int) -> int:
        return int((side_px // self._patch_px) ** 2)

    def _encode_part(self, views: Sequence[View], side_px: int) -> Tensor:
        """Views of one size, as many as a chunk holds: `[V, N, D]`."""
        captured = self._captured.get(side_px)
        if captured is None or len(views) > len(captured.graphs):
            batch_VPPC = torch.empty((len(views), side_px, side_px, 3), dtype=torch.uint8, device=self._device)
            self._fill(batch_VPPC, views)
            return self._encode_batch(batch_VPPC)
        # The stream keeps the order: what an earlier replay reads is read before it is overwritten here.
        self._fill(captured.views_VPPC[: len(views)], views)
        captured.graphs[len(views) - 1].replay()
        return captured.tokens_VND[: len(views)].clone()

    def _fill(self, batch_VPPC: Tensor, views: Sequence[View]) -> None:
        """Put views into a batch on the device, from the host through pinned memory in one copy."""
        if isinstance(views[0], Tensor):
            torch.stack([view for view in views if isinstance(view, Tensor)], out=batch_VPPC)
            return
        # Torch's allocator of pinned memory does not give a block out again before the copy from it is over.
        staged_VPPC = torch.empty(batch_VPPC.shape, dtype=torch.uint8, pin_memory=self._on_cuda)
        staged = staged_VPPC.numpy()
        for index, view in enumerate(views):
            staged[index] = view
        batch_VPPC.copy_(staged_VPPC, non_blocking=True)

    def _capture(self, side_px: int, most: int) -> _Captured:
        """Capture graphs for 1 to `most` views; their scratch memory is shared, for they never run at once."""
        views_VPPC = torch.zeros((most, side_px, side_px, 3), dtype=torch.uint8, device=self._device)
        tokens_VND = torch.empty_like(self._encode_batch(views_VPPC))  # compiles what depends on the batch, too
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graphs: list[torch.cuda.CUDAGraph] = []
        for count in range(most, 0, -1):  # the largest first, so that the others fit into its memory
            self._encode_batch(views_VPPC[:count])  # convolutions choose their algorithm outside of the capture
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                tokens_VND[:count].copy_(self._encode_batch(views_VPPC[:count]))
            graphs.append(graph)
        return _Captured(graphs=graphs[::-1], views_VPPC=views_VPPC, tokens_VND=tokens_VND)


def _by_size(views: Sequence[View]) -> dict[int, list[int]]:
    """Indices of the views of each size, largest views first: smaller ones then fit into memory that was freed."""
    groups: dict[int, list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.shape[0], []).append(index)
    return dict(sorted(groups.items(), reverse=True))


def _kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The fused kernels need tensor cores of 16 bits: in float32 they take minutes to compile."""
    if device.type == "cuda" and dtype.itemsize == 2:
        from service.engine.kernels import vision_fused

        return vision_fused
    from service.engine.kernels import vision_reference

    return vision_reference
