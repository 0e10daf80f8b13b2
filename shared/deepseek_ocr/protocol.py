"""The interface of all models of the family.

An engine encodes views of many pages together, assembles pages, prefills and decodes with its own cache; other callers
use `generate`. Knows no model.

Shape letters: B sequences, L tokens, V views, T tiles, H and W pixels, C colours, N tokens of a view, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from shared.deepseek_ocr.decoder import Decoder
from shared.deepseek_ocr.geometry import GeometryConfig


class OcrModel(Protocol):
    """Reads pages: views and a prompt in, tokens out."""

    config: Any
    lm_head: Any

    @property
    def geometry(self) -> GeometryConfig:
        """Sizes and rules for cutting pages into views."""

    @property
    def decoder(self) -> Decoder:
        """The decoder's parts; only models whose `ModelKind.has_fast_decoder` is true have them."""

    def encode_views(self, views_VHWC: Tensor) -> Tensor:
        """Encode uint8 views of one size: `[V, N, D]`."""

    def assemble_page(
        self, global_tokens_ND: Tensor, tile_tokens_TND: Tensor | None, columns: int, rows: int
    ) -> Tensor:
        """Join the tokens of a page's views: `[L, D]`."""

    def image_features(
        self,
        global_views_BHWC: Tensor,
        tiles_THWC: Tensor | None = None,
        tile_grids_B2: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> list[Tensor]:
        """Encode and assemble the pages of a batch: `[L, D]` each."""

    def embed_inputs(self, input_ids: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Embed tokens, with vision tokens at the places of image tokens: `[B, L, D]`."""

    def decode(
        self, embeds_BLD: Tensor, position_ids_BL: Tensor, mask: Tensor | None = None, cache: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the decoder: hidden states `[B, L, D]` ready for `lm_head`, and a training penalty or None."""

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as transformers does, with `forward`'s image arguments."""
