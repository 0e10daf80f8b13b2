"""JPEG's loss without its files: block transform and quantisation on the device, at a quality per image."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

LEVEL_SHIFT = 128 / 255

# Luminance table of ITU-T T.81 (JPEG), annex K.1.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@cache
def luminance_table(device: torch.device) -> Tensor:
    """The standard's quantisation steps, float32 `[8, 8]`; cached, because a copy to the device synchronises."""
    return torch.tensor(_LUMINANCE, device=device, dtype=torch.float32)


@cache
def dct_matrix(device: torch.device) -> Tensor:
    """Orthonormal 8-point DCT-II as a float32 matrix `[8, 8]`."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    matrix = torch.cos(math.pi / 8 * (k[None, :] + 0.5) * k[:, None]) * 0.5
    matrix[0] *= 1 / math.sqrt(2)
    return matrix


def jpeg_loss(images_BHW: Tensor, quality_B: Tensor) -> Tensor:
    """Quantise 8x8 blocks as JPEG does with libjpeg's quality scale.

    Shapes:
        images_BHW: float, `[0, 1]`, sides divisible by 8
        quality_B: float, 1 to 100

    Source: ITU-T T.81; quality to scale as in libjpeg's jcparam.c.
    """
    B, H, W = images_BHW.shape
    dct = dct_matrix(images_BHW.device).to(images_BHW.dtype)
    scale_B = torch.where(quality_B < 50, 50 / quality_B, 2 - quality_B / 50)
    table = luminance_table(images_BHW.device).to(images_BHW.dtype)
    step_B88 = (table * scale_B[:, None, None]).round().clamp(1, 255) / 255
    blocks = (images_BHW - LEVEL_SHIFT).reshape(B, H // 8, 8, W // 8, 8).transpose(2, 3)
    step = step_B88[:, None, None]
    blocks = dct.T @ (torch.round(dct @ blocks @ dct.T / step) * step) @ dct
    return (blocks.transpose(2, 3).reshape(B, H, W) + LEVEL_SHIFT).clamp(0, 1)
