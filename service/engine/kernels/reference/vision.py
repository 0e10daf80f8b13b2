"""The vision encoder's kernels in plain torch: what the Triton kernels are tested against, and what a CPU runs.

`kernels/triton/vision.py` offers the same names and signatures.

Shape letters: T tokens, C channels, O output channels, V views, H and W patches down and across, E = 3 * C,
N heads, D head width, K distances (2 * side - 1), S slots or side of a window, P pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.kernels.fp8_rows import Fp8Rows, to_fp8
from service.engine.kernels.reference.linear import gated, rms_norm
from shared.deepseek_ocr.sam import join_windows, split_windows
from shared.deepseek_ocr.vision import normalise_views

QUICK_GELU = 1.702

__all__ = [
    "gated",
    "gated_fp8",
    "gelu_fp8",
    "grid_attention",
    "layer_norm",
    "layer_norm_fp8",
    "linear_fp8",
    "linear_gelu",
    "linear_quick_gelu",
    "patches",
    "quick_gelu_fp8",
    "rms_norm",
    "rms_norm_fp8",
    "window_attention",
]


def layer_norm(x_TC: Tensor, shift_C: Tensor | None, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """Normalise each token of `x + shift`.

    Args:
        x_TC: tokens.
        shift_C: float32, what each token lacks; None: nothing.
        weight_C: scale of the result.
        bias_C: offset of the result.
        eps: added to the variance.

    Returns:
        `[T, C]` in the type of `x_TC`; computed in float32.
    """
    shifted = x_TC.float() if shift_C is None else x_TC.float() + shift_C
    return F.layer_norm(shifted, weight_C.shape, weight_C.float(), bias_C.float(), eps).to(x_TC.dtype)


def linear_gelu(x_TC: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
    """Linear layer and GELU by the error function: `[T, O]`."""
    return F.gelu(F.linear(x_TC, weight_OC, bias_O))


def linear_quick_gelu(x_TC: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
    """Linear layer and x * sigmoid(1.702 x): `[T, O]`."""
    hidden_TO = F.linear(x_TC, weight_OC, bias_O)
    return hidden_TO * torch.sigmoid(QUICK_GELU * hidden_TO)


def layer_norm_fp8(
    x_TC: Tensor, added_TC: Tensor | None, shift_C: Tensor | None, weight_C: Tensor, bias_C: Tensor, eps: float
) -> Fp8Rows:
    """Add to the stream, then normalise it.

    Args:
        x_TC: tokens; what is added is added in place.
        added_TC: what the product before adds to them; None: nothing.
        shift_C: as in `layer_norm`.
        weight_C: as in `layer_norm`.
        bias_C: as in `layer_norm`.
        eps: as in `layer_norm`.

    Returns:
        `[T, C]` in 8 bits.
    """
    if added_TC is not None:
        x_TC += added_TC
    shifted_TC = x_TC.float() if shift_C is None else x_TC.float() + shift_C
    return to_fp8(F.layer_norm(shifted_TC, weight_C.shape, weight_C.float(), bias_C.float(), eps))


def rms_norm_fp8(x_TC: Tensor, added_TC: Tensor | None, weight_C: Tensor, eps: float) -> Fp8Rows:
    """As `layer_norm_fp8`, by the root of the mean square: `[T, C]` in 8 bits."""
    if added_TC is not None:
        x_TC += added_TC
    return to_fp8(rms_norm(x_TC.float(), weight_C.float(), eps))


def gelu_fp8(x_TC: Tensor, bias_C: Tensor) -> Fp8Rows:
    """GELU by the error function of `x + bias`: `[T, C]` in 8 bits."""
    return to_fp8(F.gelu(x_TC.float() + bias_C.float()))


def quick_gelu_fp8(x_TC: Tensor, bias_C: Tensor) -> Fp8Rows:
    """Quick GELU, y * sigmoid(1.702 y), of `y = x + bias`: `[T, C]` in 8 bits."""
    y_TC = x_TC.float() + bias_C.float()
    return to_fp8(y_TC * torch.sigmoid(QUICK_GELU * y_TC))


def gated_fp8(joined_TO: Tensor) -> Fp8Rows:
    """`silu(gate) * up` of a token's gates and then its ups: `[T, O / 2]` in 8 bits."""
    return to_fp8(gated(joined_TO.float(), 1))


def linear_fp8(x: Fp8Rows, weight: Fp8Rows, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply tokens `[T, C]` by a weight `[O, C]`.

    Args:
        x: tokens.
        weight: dimensions are multiples of 16.
        bias_O: added to the result, of its type; None: nothing.
        dtype: type of the result.

    Returns:
        `[T, O]`; sums are float32.
    """
    product_TO = x.in_full() @ weight.in_full().t()
    return (product_TO if bias_O is None else product_TO + bias_O.float()).to(dtype)


def patches(views_VPPC: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Cut views into patches of normalised pixels.

    Args:
        views_VPPC: uint8, RGB.
        size: side of a patch in pixels.
        dtype: type of the result.

    Returns:
        `[V * H * W, size * size * 3]`: rows, columns, then colours of a patch, in [-1, 1].
    """
    views, side, _, colours = views_VPPC.shape
    pixels = normalise_views(views_VPPC, dtype).permute(0, 2, 3, 1)
    grid = pixels.reshape(views, side // size, size, side // size, size, colours).transpose(2, 3)
    return grid.reshape(-1, size * size * colours)


def window_attention(
    qkv_VHWE: Tensor, bias_E: Tensor, rows_KD: Tensor, columns_KD: Tensor, heads: int, side: int
) -> Tensor:
    """Attend within square windows, biased by relative rows and columns.

    Where a window hangs over the view's right or bottom edge it is filled up with tokens of zeros, whose queries, keys
    and values are the bias of the layer that made `qkv_VHWE`.

    Args:
        qkv_VHWE: queries, keys and values of each position, contiguous.
        bias_E: what that layer gives for a zero.
        rows_KD: embedding of each relative row, from -(side - 1) on.
        columns_KD: the same for columns.
        heads: attention heads.
        side: side of a window in patches.

    Returns:
        `[V, H, W, C]`.
    """
    _, height, width, _ = qkv_VHWE.shape
    # Filled up with the bias, because only differences from it are padded with zeros.
    padded = split_windows(qkv_VHWE - bias_E, side) + bias_E
    return join_windows(grid_attention(padded, rows_KD, columns_KD, heads), side, height, width)


def grid_attention(qkv_VHWE: Tensor, rows_KD: Tensor, columns_KD: Tensor, heads: int) -> Tensor:
    """Attend among all positions of a view, biased by relative rows and columns.

    Args:
        qkv_VHWE: queries, keys and values of each position, contiguous.
        rows_KD: embedding of each relative row, from -(H - 1) on.
        columns_KD: embedding of each relative column, from -(W - 1) on.
        heads: attention heads.

    Returns:
        `[V, H, W, C]`.
    """
    views, height, width, _ = qkv_VHWE.shape
    qkv = qkv_VHWE.reshape(views, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q_VNLD, k_VNLD, v_VNLD = qkv.unbind(0)
    q_VNHWD = q_VNLD.unflatten(2, (height, width))
    down = torch.einsum("vnhwd,hkd->vnhwk", q_VNHWD, rows_KD[_distances(height, rows_KD)])
    across = torch.einsum("vnhwd,wkd->vnhwk", q_VNHWD, columns_KD[_distances(width, columns_KD)])
    bias = (down[..., :, None] + across[..., None, :]).reshape(views, heads, height * width, height * width)
    out_VNLD = F.scaled_dot_product_attention(q_VNLD, k_VNLD, v_VNLD, attn_mask=bias)
    return out_VNLD.transpose(1, 2).reshape(views, height, width, -1)


def _distances(side: int, like: Tensor) -> Tensor:
    """Row of the table of each pair of positions: `[side, side]`, first query, then key."""
    index = torch.arange(side, device=like.device)
    return index[:, None] - index[None, :] + (side - 1)
