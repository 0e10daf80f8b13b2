"""Unlimited-OCR: DeepSeek-OCR (v1) with an attention window over the answer, 32k positions and several pages a prompt.

Owns what differs from v1: the window, the geometry, and two layouts of config.json (`baidu/Unlimited-OCR`'s own, and
that of transformers' `UnlimitedOcr*`). Weights have v1's names and layout.

Shape letters: B sequences, L tokens, S tokens attended to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache

from shared.deepseek_ocr.answer_window import window_mask
from shared.deepseek_ocr.checkpoint import load_model
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.public_config import ConfigError, config_from_public

UNLIMITED_GEOMETRY = GeometryConfig(max_tiles=32, modes=(Mode.BASE, Mode.GUNDAM))
"""Sizes and modes of the published recipe."""
PUBLIC_WINDOW = 128
"""Of the public checkpoint; for files that name none."""

_SAM_NAMES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "window_size": "window_size",
    "global_attn_indexes": "global_attn_indexes",
    "output_channels": "neck_channels",
    "downsample_channels": "downsample_channels",
}
_CLIP_NAMES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "intermediate_size": "intermediate_size",
}


class UnlimitedOcrConfig(DeepseekOcrConfig):
    """v1's configuration with an answer window."""

    model_type: ClassVar[str] = "unlimited-ocr"
    other_model_types: ClassVar[tuple[str, ...]] = ("unlimited_ocr",)
    default_geometry: ClassVar[GeometryConfig] = UNLIMITED_GEOMETRY

    def __post_init__(self, **kwargs: Any) -> None:
        """Set the public window where none is given."""
        super().__post_init__(**kwargs)
        if self.text_config.answer_window is None:
            self.text_config.answer_window = PUBLIC_WINDOW


class UnlimitedOcr(DeepseekOcrForConditionalGeneration):
    """v1's model whose answer tokens see the whole prompt and a window of the answer.

    Without a cache attention is causal, as in transformers: `forward` cannot know where a prompt ends.
    """

    config_class: type[DeepseekOcrConfig] = UnlimitedOcrConfig

    def _positions_and_mask(
        self, embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        position_ids, mask = super()._positions_and_mask(embeds, attention_mask, position_ids, cache)
        if cache is None or (attention_mask is not None and attention_mask.ndim == 4):
            return position_ids, mask
        num_seen, num_new = cache.get_seq_length(), embeds.shape[1]
        if num_seen == 0:
            # The first call has the prompt, which stays visible; the cache is the only thing that the others share.
            cache.prompt_tokens = num_new  # type: ignore[attr-defined]
            return position_ids, mask
        prompt_tokens: int = getattr(cache, "prompt_tokens", 0)
        window = self.config.text_config.answer_window
        near = window_mask(num_seen, num_new, prompt_tokens, window, embeds.device)
        return position_ids, near if mask is None else near & mask


def config_from_values(
    values: dict[str, Any], config_class: type[DeepseekOcrConfig] = UnlimitedOcrConfig
) -> DeepseekOcrConfig:
    """Build a configuration from the contents of config.json.

    Args:
        values: the parsed JSON object, in either layout; its `model_type` is not checked.
        config_class: class of the result.

    Returns:
        The configuration.
    """
    if "language_config" not in values and isinstance(values.get("text_config"), dict):
        values = _to_public_layout(values)
    language = values.get("language_config")
    if isinstance(language, dict) and "sliding_window" in values:
        values = {**values, "language_config": {"sliding_window_size": values["sliding_window"], **language}}
    return config_from_public(values, config_class)


def load_unlimited(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layers_device: torch.device | str | None = None,
) -> DeepseekOcrForConditionalGeneration:
    """Load a checkpoint; see `checkpoint.load_model`.

    Args:
        folder: a checkpoint whose config.json is in either layout, and whose weights are in the public one.
        device: of the weights.
        dtype: of the weights, whatever the files have.
        layers_device: of the weights in the decoder's layers; None: as the others.

    Returns:
        The model in evaluation mode.
    """
    return load_model(folder, device, dtype, layers_device, UnlimitedOcr, config_from_values)


def skeleton(values: dict[str, Any]) -> UnlimitedOcr:
    """The model without weights.

    Args:
        values: of config.json, in either layout.

    Returns:
        On the device `meta`.
    """
    with torch.device("meta"):
        return UnlimitedOcr(config_from_values(values))


def _to_public_layout(values: dict[str, Any]) -> dict[str, Any]:
    """The names of transformers' configuration, replaced by those of the public file."""
    text, vision = values["text_config"], values.get("vision_config") or {}
    sam, clip = vision.get("sam_config") or {}, vision.get("encoder_config") or {}
    dense = _count_dense(text.get("mlp_layer_types") or [])
    rope = text.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: rope_type is {rope['rope_type']!r}, this model only knows 'default'")
    if any(kind != "reference_sliding_attention" for kind in text.get("layer_types") or []):
        raise ConfigError("config.json: layer_types has other layers than 'reference_sliding_attention'")
    language = {
        **text,
        "sliding_window_size": text.get("sliding_window"),
        **({} if dense is None else {"first_k_dense_replace": dense}),
        **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}),
    }
    public_sam = {_SAM_NAMES[name]: value for name, value in sam.items() if name in _SAM_NAMES}
    if "mlp_dim" in sam and "hidden_size" in sam:
        public_sam["mlp_ratio"] = sam["mlp_dim"] / sam["hidden_size"]
    public_clip = {_CLIP_NAMES[name]: value for name, value in clip.items() if name in _CLIP_NAMES}
    extra: dict[str, Any] = {name: values[name] for name in ("image_token_id", "geometry", "tasks") if name in values}
    width = {"sam_vit_b": public_sam, "clip-l-14-224": public_clip}
    return {**extra, "language_config": language, "vision_config": {"width": width}}


def _count_dense(kinds: list[str]) -> int | None:
    """Dense layers before the sparse ones; None if nothing says."""
    if not kinds:
        return None
    dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    if "dense" in kinds[dense:]:
        raise ConfigError("config.json: mlp_layer_types has dense layers after sparse ones")
    return dense
