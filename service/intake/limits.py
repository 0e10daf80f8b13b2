"""What to decode and within which limits: plain data that goes to an image process as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling
from shared.images.canvases import EM_PX
from shared.images.limits import ImageLimits
from shared.images.page_ink import Turn

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the upright page."""


@dataclass(frozen=True, slots=True)
class IntakeLimits(ImageLimits):
    """Limits of a document and of each of its pages, checked before its pixels are decoded."""

    max_pdf_pages: int = 50
    pdf_dpi: int = 150


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One page of an open document to decode."""

    page: int
    """Its number, from 1."""
    mode: Mode
    geometry: GeometryConfig
    wants_image: bool = False
    """Return an upright image where that is possible (`forms.may_be_image`), else views."""
    cut_px: Box | None = None
    """With `wants_image`: return only this part of the page; one that is too large to be sent is made smaller."""
    turn_degrees: Turn | None = 0
    """Turn the page by so much clockwise, a multiple of 90, after what the file says; None: find out by its print."""
    lines_from_views: int = 0
    """Return a page of so many views or more as strips of its lines, where any are found; 0: never."""
    em_px: float = EM_PX
    """Size of print on those strips."""
    scale: float = 1.0
    """Size of a page of one view there, relative to its own; its plan stays the same, and so does all else of it."""

    def to_wire(self) -> dict[str, Any]:
        """The task as JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> DecodeTask:
        """The task that `to_wire` wrote."""
        geometry = dict(wire["geometry"])
        geometry["tiling"] = Tiling(geometry["tiling"])
        geometry["default_mode"] = Mode(geometry["default_mode"])
        geometry["squash"] = tuple(Mode(mode) for mode in geometry["squash"])
        geometry["modes"] = tuple(Mode(mode) for mode in geometry["modes"])
        return cls(
            page=wire["page"],
            mode=Mode(wire["mode"]),
            geometry=GeometryConfig(**geometry),
            wants_image=bool(wire["wants_image"]),
            cut_px=None if wire["cut_px"] is None else tuple(wire["cut_px"]),
            lines_from_views=int(wire["lines_from_views"]),
            em_px=float(wire["em_px"]),
            scale=float(wire["scale"]),
            turn_degrees=wire["turn_degrees"],
        )
