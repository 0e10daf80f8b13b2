"""The language decoder: attention with rotary positions, dense and mixture-of-experts layers.

Owns the modules behind the public keys `layers.*` and `norm`, and stores keys and values in any cache object it is
given. Knows nothing of images, sampling or how masks are made.

Shape letters: B sequences, L new tokens, S tokens attended to, H hidden width, N heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.moe import MixtureOfExperts, Mlp


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotary_tables(position_ids_BL: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines of positions.

    The frequencies are computed, never stored: a stored buffer would lose precision when the model's dtype changes.

    Args:
        position_ids_BL: integers, 0 or more.
        head_dim: D, even.
        theta: base of the wavelengths, such as 10000.
        dtype: of the result; the computation is in float32.

    Returns:
        Two tensors `[B, 1, L, D]`.

    Source:
        Llama's rotary embedding, which the public model uses: halves rotated, not pairs.
    """
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids_BL.device)
    angles = position_ids_BL.float().unsqueeze(-1) * theta ** -(even / head_dim)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BNLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys to their positions."""
    first, second = x_BNLD.chunk(2, dim=-1)
    return x_BNLD * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal multi-head attention over the new tokens and the cache."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BLH: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any | None) -> Tensor:
        """Attend.

        Args:
            x_BLH: new tokens, normalised.
            rotary: `rotary_tables` of their positions.
            mask: `[B or 1, 1, L, S]`, True or 0 where attention is allowed; None: causal if L > 1, full if L is 1.
            cache: has `update(keys, values, layer)`, which returns all keys and values to attend to; None: only the
                new tokens.

        Returns:
            `[B, L, H]`.
        """
        q, k, v = (
            projection(x_BLH).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        # Without a cache a single token may attend causally too; this avoids looking at a dynamic shape.
        is_causal = mask is None and (cache is None or x_BLH.shape[1] > 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Attention, then a dense MLP in the first layers and a mixture of experts in the others."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp: Mlp | MixtureOfExperts
        if layer < config.first_k_dense_replace:
            self.mlp = Mlp(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_BLH: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None = None, cache: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the layer.

        Args:
            x_BLH: new tokens.
            rotary: see `Attention.forward`.
            mask: see `Attention.forward`.
            cache: see `Attention.forward`.

        Returns:
            The new hidden states, and the load-balance penalty of a mixture layer in training (None otherwise).
        """
        x_BLH = x_BLH + self.self_attn(self.input_layernorm(x_BLH), rotary, mask, cache)
        normed = self.post_attention_layernorm(x_BLH)
        if isinstance(self.mlp, MixtureOfExperts):
            out, penalty = self.mlp(normed)
            return x_BLH + out, penalty
        return x_BLH + self.mlp(normed), None


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model's decoder for callers that run its layers themselves, such as an engine; shares the model's weights."""

    config: TextConfig
    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    """Of `DecoderLayer`."""
    norm: nn.Module
    originals: nn.ModuleList
    """The model's own list of layers: `layers` itself, or layers of another class with the same weights."""

    def decode(
        self, embeds_BLD: Tensor, position_ids_BL: Tensor, mask: Tensor | None = None, cache: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layers.

        Args:
            embeds_BLD: embedded tokens.
            position_ids_BL: their positions, `[1, L]` where all rows share them.
            mask: see `Attention.forward`.
            cache: see `Attention.forward`.

        Returns:
            Normalised hidden states `[B, L, D]`, and the mean load-balance penalty while training.
        """
        rotary = rotary_tables(position_ids_BL, self.config.head_dim, self.config.rope_theta, embeds_BLD.dtype)
        penalties = []
        x_BLD = embeds_BLD
        for layer in self.layers:
            x_BLD, penalty = layer(x_BLD, rotary, mask, cache)
            if penalty is not None:
                penalties.append(penalty)
        return self.norm(x_BLD), torch.stack(penalties).mean() if penalties else None

    def release(self, index: int) -> None:
        """Drop the model's references to a layer's weights; neither it nor its model can decode afterwards."""
        for layers in (self.layers, self.originals):
            layers[index] = nn.Identity()
