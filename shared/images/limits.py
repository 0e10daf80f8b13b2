"""Limits of an image file, all checked before any pixels are decoded."""

from __future__ import annotations

from dataclasses import dataclass

from shared.images.errors import ImageError, ImageReason


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image file."""

    max_pixels: int = 40_000_000
    """A page of A3 at 400 dpi has 31 million."""
    max_side_px: int = 12_000
    max_aspect_ratio: int = 200
    max_frames: int = 16

    def check_size(self, width_px: int, height_px: int) -> None:
        """Check a page's size.

        Args:
            width_px: From the file's header.
            height_px: From the file's header.

        Raises:
            ImageError: It is too large, too narrow, or a side is zero.
        """
        if width_px < 1 or height_px < 1:
            raise ImageError(ImageReason.DAMAGED, "a side is zero")
        if max(width_px, height_px) > self.max_side_px or width_px * height_px > self.max_pixels:
            raise self.too_many_pixels()
        if max(width_px, height_px) > self.max_aspect_ratio * min(width_px, height_px):
            raise ImageError(ImageReason.ASPECT_RATIO, facts={"max_aspect_ratio": self.max_aspect_ratio})

    def too_many_pixels(self) -> ImageError:
        """The error for a page that is too large."""
        facts = {"max_pixels": self.max_pixels, "max_side_px": self.max_side_px}
        return ImageError(ImageReason.TOO_MANY_PIXELS, facts=facts)
