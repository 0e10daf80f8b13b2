"""First vision encoder: a SAM ViT with mostly windowed attention, and the convolutions that shrink its grid.

Owns the modules behind the public keys `sam_model.*`. Knows nothing of tiles, pages or the decoder.

Shape letters: V views, H and W patches down and across, C channels, N heads, D head width, L = H * W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.deepseek_ocr.configuration import SamConfig
from shared.deepseek_ocr.relative_attention import near_distances, relative_attention, relative_table


class SamEncoder(nn.Module):
    """Encodes a view's pixels as a grid of tokens, each `downsample` patches wide."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.hidden_size))
        self.blocks = nn.ModuleList(
            SamBlock(config, is_global=layer in config.global_layers) for layer in range(config.num_hidden_layers)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.hidden_size, config.neck_channels, kernel_size=1, bias=False),
            ChannelNorm(config.neck_channels),
            nn.Conv2d(config.neck_channels, config.neck_channels, kernel_size=3, padding=1, bias=False),
            ChannelNorm(config.neck_channels),
        )
        first, second = config.downsample_channels
        strides = config.downsample_strides
        self.net_2 = nn.Conv2d(config.neck_channels, first, kernel_size=3, stride=strides[0], padding=1, bias=False)
        self.net_3 = nn.Conv2d(first, second, kernel_size=3, stride=strides[1], padding=1, bias=False)

    def forward(self, pixels_VCHW: Tensor, first_row: int | None = None) -> Tensor:
        """Encode views of one size, or bands of rows of such views as if the rest of them were not there.

        Args:
            pixels_VCHW: in `[-1, 1]`; height and width are multiples of the patch size.
            first_row: where bands begin in views of the stored size, in patches; None: the views are whole.

        Returns:
            `[V, C, h, w]`, C from the last downsample convolution.
        """
        x_VHWC = self.patch_embed(pixels_VCHW)
        height, width = x_VHWC.shape[1:3]
        x_VHWC = x_VHWC + stored_positions(self.pos_embed, height, width, first_row)
        for block in self.blocks:
            x_VHWC = block(x_VHWC, is_band=first_row is not None)
        return self.net_3(self.net_2(self.neck(x_VHWC.permute(0, 3, 1, 2))))


class PatchEmbed(nn.Module):
    """Embeds patches of pixels: one patchify convolution, or a stack of small ones."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.proj: nn.Module
        if not config.stem_channels:
            self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
            return
        layers: list[nn.Module] = []
        channels = 3
        for width in config.stem_channels:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), ChannelNorm(width), nn.GELU()]
            channels = width
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels, config.hidden_size, kernel_size=1))

    def forward(self, pixels_VCHW: Tensor) -> Tensor:
        """Embed every patch, channels last."""
        return self.proj(pixels_VCHW).permute(0, 2, 3, 1)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of a feature map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_VCHW: Tensor) -> Tensor:
        """Normalise each position."""
        normed = F.layer_norm(x_VCHW.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class SamBlock(nn.Module):
    """Attention within windows, or over the whole view, then an MLP."""

    def __init__(self, config: SamConfig, *, is_global: bool) -> None:
        super().__init__()
        self.window_size = 0 if is_global else config.window_size
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = SamAttention(config, config.grid_size if is_global else config.window_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SamMlp(config.hidden_size, int(config.hidden_size * config.mlp_ratio))

    def forward(self, x_VHWC: Tensor, *, is_band: bool = False) -> Tensor:
        """Apply the layer to views, or bands of views, of one size."""
        attended = self.norm1(x_VHWC)
        if self.window_size:
            height, width = x_VHWC.shape[1:3]
            windows = split_windows(attended, self.window_size)
            attended = join_windows(self.attn(windows), self.window_size, height, width)
        else:
            attended = self.attn(attended, is_band=is_band)
        x_VHWC = x_VHWC + attended
        return x_VHWC + self.mlp(self.norm2(x_VHWC))


class SamAttention(nn.Module):
    """Self-attention with decomposed relative positions along rows and columns."""

    def __init__(self, config: SamConfig, size: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, head_dim))

    def forward(self, x_VHWC: Tensor, *, is_band: bool = False) -> Tensor:
        """Attend among all positions of each grid, or of a band of its rows."""
        views, height, width, channels = x_VHWC.shape
        qkv = self.qkv(x_VHWC).view(views, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q_VNLD, k_VNLD, v_VNLD = qkv.unbind(0)
        rel_pos_h = near_distances(self.rel_pos_h, height) if is_band else self.rel_pos_h
        rows_HKD, columns_WKD = relative_table(rel_pos_h, height), relative_table(self.rel_pos_w, width)
        out_VNLD = relative_attention(q_VNLD, k_VNLD, v_VNLD, rows_HKD, columns_WKD)
        return self.proj(out_VNLD.transpose(1, 2).reshape(views, height, width, channels))


class SamMlp(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, hidden)
        self.lin2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position."""
        return self.lin2(F.gelu(self.lin1(x)))


def split_windows(x_VHWC: Tensor, size: int) -> Tensor:
    """Cut views into square windows, padded with zeros at the right and bottom.

    Args:
        x_VHWC: grids of patches.
        size: side of a window, in patches.

    Returns:
        `[V * windows, size, size, C]`, windows in reading order.
    """
    views, height, width, channels = x_VHWC.shape
    padded = F.pad(x_VHWC, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = padded.shape[1] // size, padded.shape[2] // size
    windows = padded.view(views, rows, size, columns, size, channels).transpose(2, 3)
    return windows.reshape(-1, size, size, channels)


def join_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Undo `split_windows`.

    Args:
        windows: `[V * windows, size, size, C]`, in reading order.
        size: side of a window, in patches.
        height: patches down a view.
        width: patches across a view.

    Returns:
        `[V, height, width, C]`.
    """
    rows, columns = -(-height // size), -(-width // size)
    grid = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    return grid.reshape(-1, rows * size, columns * size, windows.shape[-1])[:, :height, :width]


def stored_positions(positions_1HWC: Tensor, height: int, width: int, first_row: int | None) -> Tensor:
    """Position embeddings of views, or of bands of their rows.

    Args:
        positions_1HWC: the stored embeddings.
        height: rows of a view or band.
        width: columns.
        first_row: the band's first row on the stored grid, which is as wide; None: a whole view.

    Returns:
        `[1, height, width, C]`.

    Raises:
        ValueError: the stored grid has no such band.
    """
    if first_row is None:
        return resize_positions(positions_1HWC, height, width)
    rows, columns = positions_1HWC.shape[1:3]
    if columns != width or not 0 <= first_row <= rows - height:
        raise ValueError(f"no band of {height} x {width} from row {first_row} on a grid of {rows} x {columns}")
    return positions_1HWC[:, first_row : first_row + height]


def resize_positions(positions_1HWC: Tensor, height: int, width: int) -> Tensor:
    """Interpolate stored position embeddings to another grid.

    Args:
        positions_1HWC: the stored embeddings.
        height: rows of the other grid.
        width: columns of the other grid.

    Returns:
        `[1, height, width, C]`; the stored tensor itself if the size is the same.

    Source:
        `get_abs_pos_sam` of deepseek-ai/DeepSeek-OCR: antialiased bicubic, in float32.
    """
    if positions_1HWC.shape[1:3] == (height, width):
        return positions_1HWC
    resized = F.interpolate(
        positions_1HWC.permute(0, 3, 1, 2).float(), size=(height, width), mode="bicubic", antialias=True
    )
    return resized.permute(0, 2, 3, 1).to(positions_1HWC.dtype)
