"""Our own modules over the weights of transformers' DeepSeek-OCR-2: the decoder's layers and the first encoder.

Both are v1's, so whatever runs v1's modules can run these; no weight is copied. Owns the two maps, of configurations
and of names. Knows no pages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DeepseekOcr2Config

from shared.deepseek_ocr.configuration import SamConfig, TextConfig
from shared.deepseek_ocr.decoder import Decoder, DecoderLayer
from shared.deepseek_ocr.public_config import ConfigError
from shared.deepseek_ocr.sam import SamEncoder

_TEXT_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "routed_scaling_factor",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_TEXT_FIXED = {"topk_method": "greedy", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_SAM_NAMES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "window_size": "window_size",
    "global_attn_indexes": "global_layers",
    "layer_norm_eps": "layer_norm_eps",
    "output_channels": "neck_channels",
    "downsample_channels": "downsample_channels",
}
_SAM_FIXED = {"hidden_act": "gelu", "num_channels": 3, "qkv_bias": True, "use_abs_pos": True, "use_rel_pos": True}
_SAM_MODULES = {
    "patch_embed.proj": "patch_embed.projection",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "net_2": "proj.conv1",
    "net_3": "proj.conv2",
}
"""Our names of the first encoder's modules outside of its layers, and transformers'."""


def text_config(config: DeepseekOcr2Config) -> TextConfig:
    """The decoder's dimensions.

    Args:
        config: of the whole model.

    Returns:
        The same in our own class.

    Raises:
        ConfigError: A value is not supported.
    """
    text: Any = config.text_config
    _require("text_config", text, _TEXT_FIXED | {"num_key_value_heads": text.num_attention_heads})
    kinds = list(text.mlp_layer_types or [])
    num_dense = kinds.count("dense")
    if kinds != ["dense"] * num_dense + ["sparse"] * (text.num_hidden_layers - num_dense):
        raise ConfigError(f"config.json: mlp_layer_types is {kinds}; dense layers come first, one entry a layer")
    rope = text.rope_parameters
    if rope["rope_type"] != "default":
        raise ConfigError(f"config.json: rope_type is {rope['rope_type']!r}, this model only knows 'default'")
    return TextConfig(
        **{name: getattr(text, name) for name in _TEXT_NAMES},
        rope_theta=rope["rope_theta"],
        first_k_dense_replace=num_dense,
    )


def sam_config(config: DeepseekOcr2Config) -> SamConfig:
    """The first encoder's dimensions.

    Args:
        config: of the whole model.

    Returns:
        The same in our own class.

    Raises:
        ConfigError: A value is not supported.
    """
    vision: Any = config.vision_config
    sam = vision.sam_config
    _require("sam_config", sam, _SAM_FIXED)
    return SamConfig(
        **{ours: getattr(sam, theirs) for theirs, ours in _SAM_NAMES.items()}, mlp_ratio=sam.mlp_dim / sam.hidden_size
    )


def native_decoder(model: Any) -> Decoder:
    """Our layers over a model's decoder.

    Args:
        model: transformers' DeepSeek-OCR-2, its decoder's modules as it made them.

    Returns:
        The decoder, in evaluation mode; its parameters are the model's own.
    """
    theirs, text = model.model.language_model, text_config(model.config)
    layers = nn.ModuleList()
    for index, layer in enumerate(theirs.layers):
        with torch.device("meta"):
            ours = DecoderLayer(text, index)
        # The parameters themselves, not copies of their tensors: what moves the model moves these as well.
        ours.load_state_dict(layer.state_dict(keep_vars=True), assign=True)
        layers.append(ours.eval())
    return Decoder(text, theirs.embed_tokens, layers, theirs.norm, theirs.layers)


def native_sam(model: Any) -> SamEncoder:
    """Our first encoder over a model's.

    Args:
        model: transformers' DeepSeek-OCR-2.

    Returns:
        The encoder, in evaluation mode; its parameters are the model's own.
    """
    with torch.device("meta"):
        ours = SamEncoder(sam_config(model.config))
    theirs = model.model.vision_tower.sam_encoder.state_dict(keep_vars=True)
    ours.load_state_dict({name: theirs[_their_name(name)] for name in ours.state_dict()}, assign=True)
    return ours.eval()


def _their_name(name: str) -> str:
    for ours, theirs in _SAM_MODULES.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name.replace("blocks.", "layers.").replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")


def _require(part: str, config: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"config.json: {part}.{name} is {getattr(config, name)!r}, this model only knows {value!r}"
            )
