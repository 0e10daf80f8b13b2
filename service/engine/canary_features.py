"""The canary page's encoded features, which every adapter shares, because none adapts the encoder.

Owns the pixel comparison that makes reusing them safe. Torch-free. Used by the engine's single thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.deepseek_ocr.forms import PreparedPage


@dataclass(slots=True)
class CanaryFeatures:
    """A page, and its features once it has been encoded."""

    page: PreparedPage
    features_LD: Any = None
    """A tensor on the device, with a vector for each image token."""

    def are_of(self, page: PreparedPage) -> bool:
        """Whether another page is this one, pixel for pixel."""
        return (
            page.plan == self.page.plan
            and len(page.arrays) == len(self.page.arrays)
            and all(map(np.array_equal, page.arrays, self.page.arrays))
        )
