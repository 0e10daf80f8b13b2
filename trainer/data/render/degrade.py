"""Degrades clean pages as cameras, scanners and copiers do, on the CPU; does not know the text.

Images are grey, uint8 [H, W], 255 is white. Each effect takes an image and a random generator, and returns a new image.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Grey = npt.NDArray[np.uint8]
Effect = Callable[[Grey, np.random.Generator], Grey]


def _clipped(values: npt.NDArray[Any]) -> Grey:
    return np.clip(values, 0, 255).astype(np.uint8)


def _smooth_field(shape: tuple[int, int], rng: np.random.Generator, cells: int) -> npt.NDArray[np.float32]:
    """Make a smooth random field between 0 and 1 of the image's shape."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def blur(image: Grey, rng: np.random.Generator) -> Grey:
    """Blur, as out of focus."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.3)))))


def rescale(image: Grey, rng: np.random.Generator) -> Grey:
    """Scale down and up again."""
    height, width = image.shape
    share = float(rng.uniform(0.6, 0.85))
    size = (max(int(width * share), 8), max(int(height * share), 8))
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def skew(image: Grey, rng: np.random.Generator) -> Grey:
    """Rotate by up to three degrees; the page grows so that nothing is cut off."""
    angle = float(rng.uniform(0.4, 3.0)) * (1 if rng.random() < 0.5 else -1)
    turned = Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    return np.asarray(turned)


def perspective(image: Grey, rng: np.random.Generator) -> Grey:
    """Distort as if seen slightly from the side; the page is padded so that nothing is cut off."""
    pad = max(round(min(image.shape) * 0.02), 2)
    padded = np.pad(image, pad, constant_values=255)
    height, width = padded.shape
    # The source quadrilateral reaches outwards, so the content only shrinks.
    reach = rng.uniform(0, pad, size=8)
    far = (width, height)
    left_side = (-reach[0], -reach[1], -reach[2], far[1] + reach[3])
    right_side = (far[0] + reach[4], far[1] + reach[5], far[0] + reach[6], -reach[7])
    quad = (*left_side, *right_side)
    bent = Image.fromarray(padded).transform(
        (width, height), Image.Transform.QUAD, [float(value) for value in quad], Image.Resampling.BICUBIC, fillcolor=255
    )
    return np.asarray(bent)


def contrast(image: Grey, rng: np.random.Generator) -> Grey:
    """Reduce contrast: grey print on greyish paper."""
    ink, paper = float(rng.uniform(0, 110)), float(rng.uniform(185, 255))
    return _clipped(ink + image.astype(np.float32) * ((paper - ink) / 255))


def texture(image: Grey, rng: np.random.Generator) -> Grey:
    """Add the texture of rough paper."""
    height, width = image.shape
    grain = Image.fromarray(rng.normal(0, 1, ((height + 1) // 2, (width + 1) // 2)).astype(np.float32))
    soft = np.asarray(grain.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    clouds = _smooth_field(image.shape, rng, 9) - 0.5
    return _clipped(image + soft * float(rng.uniform(3, 10)) + clouds * float(rng.uniform(5, 30)))


def shadow(image: Grey, rng: np.random.Generator) -> Grey:
    """Light the page unevenly."""
    field = _smooth_field(image.shape, rng, 3)
    return _clipped(image * (1 - float(rng.uniform(0.15, 0.5)) * field))


def bleed(image: Grey, rng: np.random.Generator) -> Grey:
    """Let print on the back shine through."""
    mirrored = np.roll(image[:, ::-1], int(rng.integers(5, 40)), axis=0)
    back = Image.fromarray(mirrored).filter(ImageFilter.GaussianBlur(1.5))
    through = (255 - np.asarray(back, dtype=np.float32)) * float(rng.uniform(0.06, 0.2))
    return _clipped(image - through)


def noise(image: Grey, rng: np.random.Generator) -> Grey:
    """Add sensor noise."""
    return _clipped(image + rng.normal(0, float(rng.uniform(4, 22)), image.shape).astype(np.float32))


def speckles(image: Grey, rng: np.random.Generator) -> Grey:
    """Add dust: dark and light dots."""
    spoilt = image.copy()
    for value, share in ((20, 0.0015), (235, 0.0015)):
        dots = rng.random(image.shape) < share * float(rng.uniform(0.2, 1.5))
        spoilt[dots] = value
    return spoilt


def threshold(image: Grey, rng: np.random.Generator) -> Grey:
    """Reduce to 0 and 255, as a black and white scan."""
    low, high = np.percentile(image, 1), np.percentile(image, 95)
    level = low + (high - low) * float(rng.uniform(0.4, 0.65))
    return np.where(image > level, 255, 0).astype(np.uint8)


def inverted(image: Grey, _rng: np.random.Generator) -> Grey:
    """Invert: light text on a dark background. Takes a generator because every effect does."""
    return 255 - image


def jpeg(image: Grey, rng: np.random.Generator) -> Grey:
    """Store as JPEG of quality 25 to 70 and read back."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=int(rng.integers(25, 71)))
    return np.asarray(Image.open(stream))


# In the order in which they happen to a page, each with its usual share.
EFFECTS: Final[dict[str, tuple[Effect, float]]] = {
    "skew": (skew, 0.35),
    "perspective": (perspective, 0.25),
    "blur": (blur, 0.4),
    "rescale": (rescale, 0.25),
    "bleed": (bleed, 0.1),
    "contrast": (contrast, 0.5),
    "texture": (texture, 0.3),
    "shadow": (shadow, 0.3),
    "noise": (noise, 0.4),
    "speckles": (speckles, 0.15),
    "threshold": (threshold, 0.1),
    "inverted": (inverted, 0.12),
    "jpeg": (jpeg, 0.5),
}


def degrade(
    image: Grey, rng: np.random.Generator, names: tuple[str, ...] | None = None
) -> tuple[Grey, tuple[str, ...]]:
    """Apply effects in their natural order.

    Args:
        image: a clean page, uint8 `[H, W]`, 255 is paper.
        rng: draws effects and their strengths.
        names: which effects; None draws them by their usual shares.

    Returns:
        The degraded page, larger if it was rotated, and the names of the effects.

    Raises:
        ValueError: an effect's name is unknown.
    """
    chosen = draw_effects(rng) if names is None else names
    for name in sorted(chosen, key=list(EFFECTS).index):
        image = EFFECTS[name][0](image, rng)
    return image, tuple(name for name in EFFECTS if name in chosen)


def draw_effects(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw names of effects by their usual shares, at least one."""
    drawn = tuple(name for name, (_, share) in EFFECTS.items() if rng.random() < share)
    return drawn or ("jpeg",)
