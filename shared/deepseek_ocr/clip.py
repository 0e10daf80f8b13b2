"""Second vision encoder: a CLIP ViT that reads the first encoder's tokens instead of pixels.

Owns the modules behind the public keys `vision_model.*`. Knows nothing of pixels or pages.

Shape letters: V views, H and W tokens down and across, C channels, L = H * W (+ 1 with the class token).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.deepseek_ocr.configuration import ClipConfig
from shared.deepseek_ocr.sam import stored_positions


class ClipEncoder(nn.Module):
    """Mixes the tokens of each view by global attention."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformer = ClipTransformer(config)

    def forward(self, features_VCHW: Tensor, first_row: int | None = None) -> Tensor:
        """Encode the tokens of views of one size.

        Args:
            features_VCHW: output of the first encoder.
            first_row: where bands begin in views of the stored size, in tokens; None: the views are whole.

        Returns:
            `[V, H * W, C]`, without the class token.
        """
        x_VLC = self.pre_layrnorm(self.embeddings(features_VCHW, first_row))
        for layer in self.transformer.layers:
            x_VLC = layer(x_VLC)
        return x_VLC[:, 1:]


class ClipEmbeddings(nn.Module):
    """Class token and learned positions."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.position_embedding = nn.Embedding(config.grid_size**2 + 1, config.hidden_size)

    def forward(self, features_VCHW: Tensor, first_row: int | None = None) -> Tensor:
        """Prepend the class token and add positions, interpolated if the grid differs from the stored one."""
        views, channels, height, width = features_VCHW.shape
        stored_LC = self.position_embedding.weight
        grid_1HWC = stored_LC[1:].view(1, self.grid_size, self.grid_size, channels)
        positions_1LC = stored_positions(grid_1HWC, height, width, first_row).reshape(1, height * width, channels)
        tokens_VLC = features_VCHW.flatten(2).transpose(1, 2) + positions_1LC
        class_token = (self.class_embedding + stored_LC[0]).expand(views, 1, channels)
        return torch.cat((class_token, tokens_VLC), dim=1)


class ClipTransformer(nn.Module):
    """The layers, with the names of public checkpoints."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.num_hidden_layers))


class ClipLayer(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = ClipAttention(config)
        self.mlp = ClipMlp(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_VLC: Tensor) -> Tensor:
        """Apply the layer."""
        x_VLC = x_VLC + self.self_attn(self.layer_norm1(x_VLC))
        return x_VLC + self.mlp(self.layer_norm2(x_VLC))


class ClipAttention(nn.Module):
    """Multi-head self-attention over all tokens of a view."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_VLC: Tensor) -> Tensor:
        """Attend."""
        qkv = self.qkv_proj(x_VLC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ClipMlp(nn.Module):
    """Two linear layers with the sigmoid approximation of GELU that CLIP was trained with."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))
