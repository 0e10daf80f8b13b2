"""What decoding is given and how far it may go; plain data that crosses the pipe to a decoding process as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Bounds on one document; all are checked before pixels are made."""

    max_pixels: int = 40_000_000
    max_side_px: int = 12_000
    max_aspect_ratio: int = 200
    max_frames: int = 16
    max_pdf_pages: int = 50
    pdf_dpi: int = 150


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """One page of one document to be made ready for the engine.

    `position` counts from 0 within the selected pages; the whole selection is checked with every order, so that a
    document which breaks a limit on its last page is refused at its first.
    """

    selection: tuple[int, ...] | None
    position: int
    mode: Mode
    geometry: GeometryConfig
    limits: IntakeLimits
    wants_image: bool = False
    """Whether a page is wanted as an upright image where it may come so (`forms.may_be_image`); else as views."""

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
            selection=None if wire["selection"] is None else tuple(wire["selection"]),
            position=wire["position"],
            mode=Mode(wire["mode"]),
            geometry=GeometryConfig(**geometry),
            limits=IntakeLimits(**wire["limits"]),
            wants_image=bool(wire["wants_image"]),
        )
