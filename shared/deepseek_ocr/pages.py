"""From pages to a decoder's inputs, for any model that can encode views: the part that the whole family shares.

Owns how the views of a batch are encoded together and where their tokens go in the text. Knows no model's internals.

Shape letters: B sequences, L tokens, T tiles, H and W pixels, C colours, N tokens of a view, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.deepseek_ocr.geometry import ViewPlan

if TYPE_CHECKING:
    from shared.deepseek_ocr.protocol import OcrModel

IMAGE_ARGUMENTS = ("global_views_BHWC", "tiles_THWC", "tile_grids_B2")
"""Arguments of `forward` that only the prefill needs."""


def assemble_pages(model: OcrModel, pages: Sequence[tuple[ViewPlan, Sequence[Tensor]]]) -> Tensor:
    """Join the encoded views of a prompt's pages, the global one first among each page's: `[L, D]`."""
    joined = []
    for plan, (global_ND, *tiles) in pages:
        tiles_TND = torch.stack(tiles) if tiles else None
        joined.append(model.assemble_page(global_ND, tiles_TND, plan.tile_columns, plan.tile_rows))
    return joined[0] if len(joined) == 1 else torch.cat(joined)


class PageInputMixin:
    """A mixin for transformers models that have `encode_views` and `assemble_page`."""

    if TYPE_CHECKING:
        config: Any

        def encode_views(self, views_VHWC: Tensor) -> Tensor:
            """See `protocol.OcrModel`."""

        def assemble_page(
            self, global_tokens_ND: Tensor, tile_tokens_TND: Tensor | None, columns: int, rows: int
        ) -> Tensor:
            """See `protocol.OcrModel`."""

        def get_input_embeddings(self) -> Any:
            """Token embeddings."""

    def image_features(
        self,
        global_views_BHWC: Tensor,
        tiles_THWC: Tensor | None = None,
        tile_grids_B2: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> list[Tensor]:
        """Encode the pages of a batch, all views of one size together.

        Args:
            global_views_BHWC: uint8, one view per page.
            tiles_THWC: uint8, the tiles of all pages in order; None if there are none.
            tile_grids_B2: columns and rows of each page's tiles, 0 and 0 without tiles; on the CPU, since the host
                reads it.

        Returns:
            For each page `[L, D]`.

        Raises:
            ValueError: The grids do not match the number of pages or tiles.
        """
        pages = global_views_BHWC.shape[0]
        grids = _as_grids(tile_grids_B2, pages)
        counts = [columns * rows for columns, rows in grids]
        num_tiles = 0 if tiles_THWC is None else tiles_THWC.shape[0]
        if len(grids) != pages or sum(counts) != num_tiles:
            raise ValueError(f"tile grids {grids} do not describe {pages} pages with {num_tiles} tiles in all")
        tile_tokens: Sequence[Tensor | None] = [None] * pages
        if tiles_THWC is None or not num_tiles:
            global_tokens = self.encode_views(global_views_BHWC)
        elif tiles_THWC.shape[1:] == global_views_BHWC.shape[1:]:
            tokens = self.encode_views(torch.cat((global_views_BHWC, tiles_THWC)))
            global_tokens, tile_tokens = tokens[:pages], tokens[pages:].split(counts)
        else:
            global_tokens = self.encode_views(global_views_BHWC)
            tile_tokens = self.encode_views(tiles_THWC).split(counts)
        return [
            self.assemble_page(tokens, tiles, columns, rows)
            for tokens, tiles, (columns, rows) in zip(global_tokens, tile_tokens, grids, strict=True)
        ]

    def embed_inputs(self, input_ids: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Embed tokens, with vision tokens at the places of image tokens.

        Args:
            input_ids: `[B, L]`.
            features: `[L, D]` for each sequence, from `image_features`; empty without images.

        Returns:
            `[B, L, D]`.

        Raises:
            ValueError: Image tokens and features differ in number (checked only on the CPU, where it costs no wait).
        """
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        if not features:
            return embeds
        flat = torch.cat(list(features))
        is_image = input_ids == self.config.image_token_id
        if input_ids.device.type == "cpu":
            placeholders, given = is_image.sum(dim=1).tolist(), [len(page) for page in features]
            if placeholders != given:
                raise ValueError(f"the sequences have {placeholders} image tokens, their images give {given}")
        # A gather, not masked_scatter: its backward pass has static shapes and never waits for the device.
        index = (is_image.flatten().cumsum(0) - 1).clamp(min=0, max=flat.shape[0] - 1).view_as(input_ids)
        return torch.where(is_image.unsqueeze(-1), flat[index].to(embeds.dtype), embeds)

    def embed_page_inputs(
        self,
        input_ids: Tensor,
        global_views_BHWC: Tensor | None,
        tiles_THWC: Tensor | None,
        tile_grids_B2: Tensor | Sequence[Sequence[int]] | None,
    ) -> Tensor:
        """Encode the pages, if any, and embed the tokens.

        Args:
            input_ids: see `embed_inputs`.
            global_views_BHWC: see `image_features`; None without pages.
            tiles_THWC: see `image_features`.
            tile_grids_B2: see `image_features`.

        Returns:
            `[B, L, D]`.
        """
        features: list[Tensor] = []
        if global_views_BHWC is not None:
            features = self.image_features(global_views_BHWC, tiles_THWC, tile_grids_B2)
        return self.embed_inputs(input_ids, features)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Pass the images only to the first step of `generate`; afterwards they are in the cache."""
        prepare = super().prepare_inputs_for_generation  # type: ignore[misc] # of the transformers class behind
        inputs: dict[str, Any] = prepare(input_ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.update(dict.fromkeys(IMAGE_ARGUMENTS))
        return inputs


def _as_grids(tile_grids_B2: Tensor | Sequence[Sequence[int]] | None, pages: int) -> list[tuple[int, int]]:
    if tile_grids_B2 is None:
        return [(0, 0)] * pages
    values = tile_grids_B2.tolist() if isinstance(tile_grids_B2, Tensor) else tile_grids_B2
    return [(int(columns), int(rows)) for columns, rows in values]
