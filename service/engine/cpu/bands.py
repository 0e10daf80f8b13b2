"""The rows of a view that are not padding: which are encoded, and what a prompt has of them then.

Padding above and below is the same in all views, so a CPU leaves it out of pages that are one view, which canvases and
most lines and blocks are: fewer patches to encode, and fewer tokens to read and to attend to. All tokens keep the
positions that they have in the whole prompt. The encoding is not quite that of the whole view, whose attention sees
the padding.

Shape letters: H and W pixels, C colours, L tokens of a page in full, K those that are left, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.deepseek_ocr.forms import CHANNELS
from shared.deepseek_ocr.geometry import PADDING_GREY
from shared.deepseek_ocr.protocol import OcrModel
from shared.images.canvases import BAND_PX, KEPT_ROWS, LOW_PX

FINE_BAND_PX = 64
"""Bands of low canvases are multiples of it where an encoder cuts windows: 9 % less to encode. Every row, 32 px, would
be 13 % and read a little worse, and so would images of a line or two (`benchmarks/LOG.md`)."""


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of tokens of a view."""

    first_row: int
    num_rows: int
    """Encoded."""
    first_shown: int
    """Rows of tokens with something to see, from the view's top."""
    end_shown: int


@dataclass(frozen=True, slots=True)
class BandPixels:
    """What is encoded of a view.

    Shapes:
        pixels_HWC: the band's rows, uint8
    """

    band: Band
    pixels_HWC: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BandFeatures:
    """A view's tokens.

    Shapes:
        tokens_ND: all of the band, whole rows
    """

    band: Band
    tokens_ND: Tensor


@dataclass(frozen=True, slots=True)
class PartialFeatures:
    """Vectors of a page's image tokens without those of padding.

    Attributes:
        places: Of each among the page's image tokens.
        total: Image tokens of the page in full.
    """

    features_KD: Tensor
    places: Sequence[int]
    total: int

    def positions(self, ids: Sequence[int], image_id: int) -> list[int]:
        """What is left of a prompt.

        Args:
            ids: With all image tokens.
            image_id: The image token.

        Returns:
            Indices among the ids, rising: those of text and of the image tokens that have vectors.
        """
        images = [index for index, token in enumerate(ids) if token == image_id]
        assert len(images) == self.total
        left_out = set(images).difference(images[place] for place in self.places)
        return [index for index in range(len(ids)) if index not in left_out]


def band_of(view_HWC: NDArray[np.uint8], token_px: int, *, cuts_windows: bool = False) -> Band | None:
    """Find the rows of a view that are not padding.

    Args:
        view_HWC: Square.
        token_px: Side of what a vision token shows.
        cuts_windows: Whether the encoder takes bands that end within a window.

    Returns:
        The rows, rounded up to a multiple of `BAND_PX`, or of `FINE_BAND_PX` if windows may be cut and the band is
        higher than a window, but no higher than low canvases; None for a view without content, or if its side is no
        multiple of `BAND_PX`.
    """
    side = view_HWC.shape[0]
    shown = np.flatnonzero((view_HWC != PADDING_GREY).any(axis=(1, 2)))
    if not len(shown) or side % BAND_PX or BAND_PX % token_px:
        return None
    first, end = int(shown[0]) // token_px, -(-(int(shown[-1]) + 1) // token_px)
    rows, height_px = side // token_px, (end - first) * token_px
    is_fine = cuts_windows and BAND_PX < height_px <= LOW_PX and FINE_BAND_PX % token_px == 0
    step = (FINE_BAND_PX if is_fine else BAND_PX) // token_px
    count = -(-(end - first) // step) * step
    return Band(min(first, rows - count), count, first, end)


def rows_of(view_HWC: NDArray[np.uint8], band: Band, token_px: int) -> NDArray[np.uint8]:
    """The pixels of a band."""
    return view_HWC[band.first_row * token_px : (band.first_row + band.num_rows) * token_px]


class BandAssembler:
    """Makes what a prompt has of a page from its band and the padding around it.

    Args:
        model: Has `encode_bands`; assembles whole pages.
        token_px: Side of what a vision token shows.
    """

    def __init__(self, model: OcrModel, token_px: int) -> None:
        self._model = model
        self._token_px = token_px
        self._padding: dict[int, Tensor] = {}

    def assemble(self, features: BandFeatures) -> PartialFeatures:
        """Join the shown rows and those of padding next to them, and the separator.

        Args:
            features: Of the page's only view.

        Returns:
            What the model makes of the page, without most rows of padding.
        """
        band, tokens_ND = features.band, features.tokens_ND
        side = len(tokens_ND) // band.num_rows
        grid_ND = self._padding_of(side).clone()
        grid_ND[band.first_row * side :][: len(tokens_ND)] = tokens_ND
        page_LD = self._model.assemble_page(grid_ND, None, 0, 0)
        row = (len(page_LD) - 1) // side
        first, end = max(0, band.first_shown - KEPT_ROWS), min(side, band.end_shown + KEPT_ROWS)
        places = [*range(first * row, end * row), len(page_LD) - 1]
        return PartialFeatures(page_LD[places], places, len(page_LD))

    def _padding_of(self, side: int) -> Tensor:
        """The tokens of a view without a page."""
        if side not in self._padding:
            px = side * self._token_px
            view_1HWC = torch.full((1, px, px, CHANNELS), PADDING_GREY, dtype=torch.uint8)
            self._padding[side] = self._model.encode_views(view_1HWC)[0]
        return self._padding[side]
