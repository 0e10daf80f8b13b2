"""The identity of a page: the same for the same pixels, whatever file they come from."""

from __future__ import annotations

import hashlib

from PIL import Image


def pixels_sha256(upright: Image.Image) -> str:
    """SHA-256 of an upright RGB image, in hex digits, over `WIDTHxHEIGHT`, a zero byte and the pixels."""
    digest = hashlib.sha256(f"{upright.width}x{upright.height}\0".encode())
    digest.update(upright.tobytes())
    return digest.hexdigest()
