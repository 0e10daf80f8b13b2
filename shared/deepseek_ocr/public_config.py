"""Converts config.json of public DeepSeek-OCR checkpoints to `DeepseekOcrConfig` and back.

Owns the names that the public file uses, and the sizes that it omits because the encoders are fixed. Our own values,
such as a convolutional stem or the geometry of views, are additional keys of the same file. Reads no files.
"""

from __future__ import annotations

from typing import Any

from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig

_SAM_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "global_attn_indexes": "global_layers",
    "downsample_channels": "downsample_channels",
    "downsample_strides": "downsample_strides",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "stem_channels": "stem_channels",
    "neck_channels": "neck_channels",
}
_CLIP_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "intermediate_size": "intermediate_size",
}
_TEXT_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "norm_topk_prob",
    "routed_scaling_factor",
    "router_aux_loss_coef",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
OWN_OCR2, TRANSFORMERS_OCR2 = "DeepseekOCR2ForCausalLM", "deepseek-community/DeepSeek-OCR-2"
"""Class that the files of `deepseek-ai/DeepSeek-OCR-2` name, which have v1's `model_type`; the repository to take."""
_WINDOW = "sliding_window_size"
"""Name of `answer_window` in Unlimited-OCR's file; others have none."""
_TEXT_FIXED: dict[str, tuple[Any, ...]] = {
    "use_mla": (False,),
    "topk_method": ("greedy",),
    "scoring_func": ("softmax",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False,),
    "moe_layer_freq": (1,),
    "ep_size": (1,),
}
"""Options for which the decoder supports only one value; a file with another value is refused, not misread."""


class ConfigError(ValueError):
    """A config.json for a model that cannot be built; the message names the value."""


def config_from_public(
    values: dict[str, Any], config_class: type[DeepseekOcrConfig] = DeepseekOcrConfig
) -> DeepseekOcrConfig:
    """Build a configuration from the contents of a public config.json.

    Args:
        values: the parsed JSON object; its `model_type` is not checked.
        config_class: class of the result.

    Returns:
        The configuration; values missing in the file are those of DeepSeek-OCR.

    Raises:
        ConfigError: A part is missing, or a value is not supported.
    """
    if values.get("architectures") == [OWN_OCR2]:
        raise ConfigError(
            "config.json is DeepSeek-OCR-2's in the layout of its own code; take the layout of transformers, which "
            f"{TRANSFORMERS_OCR2} has"
        )
    language = _part(values, "language_config")
    widths = _part(_part(values, "vision_config"), "width")
    clip = _part(widths, "clip-l-14-224")
    clip_values = _renamed(clip, _CLIP_NAMES)
    clip_values.setdefault("intermediate_size", 4 * clip_values.get("hidden_size", ClipConfig().hidden_size))
    extra = {name: values[name] for name in ("image_token_id", "geometry", "tasks") if name in values}
    try:
        config = config_class(
            sam_config=SamConfig(**_renamed(_part(widths, "sam_vit_b"), _SAM_NAMES)),
            clip_config=ClipConfig(**clip_values),
            text_config=_text_config(language),
            **extra,
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.json: {error}") from error
    _check_projector(values.get("projector_config", {}), config)
    return config


def config_to_public(config: DeepseekOcrConfig) -> dict[str, Any]:
    """Convert a configuration to the layout of the public config.json; the inverse of `config_from_public`.

    Args:
        config: of any size, including nano's.

    Returns:
        A JSON object.
    """
    sam, clip, text = config.sam_config, config.clip_config, config.text_config
    language: dict[str, Any] = {name: getattr(text, name) for name in _TEXT_NAMES}
    language |= {name: allowed[0] for name, allowed in _TEXT_FIXED.items()}
    language |= {"architectures": ["DeepseekV2ForCausalLM"], "num_key_value_heads": text.num_attention_heads}
    # In the public file, head widths of 0 mean that there is no latent attention.
    language |= {"kv_lora_rank": None, "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0}
    language |= {"v_head_dim": 0, "n_group": 1, "topk_group": 1, "lm_head": True, "rm_head": False}
    if text.answer_window is not None:
        language[_WINDOW] = text.answer_window
    public: dict[str, Any] = {
        "architectures": ["DeepseekOCRForCausalLM"],
        "model_type": config.model_type,
        "image_token_id": config.image_token_id,
        "global_view_pos": "head",
        "tile_tag": "2D",
        "language_config": language,
        "projector_config": {
            "input_dim": 2 * clip.hidden_size,
            "model_type": "mlp_projector",
            "n_embed": text.hidden_size,
            "projector_type": "linear",
        },
        "vision_config": {
            "image_size": sam.image_size,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {
                "clip-l-14-224": _named_back(clip, _CLIP_NAMES),
                "sam_vit_b": _named_back(sam, _SAM_NAMES),
            },
        },
    }
    if config.geometry is not None:
        public["geometry"] = config.geometry
    if config.tasks is not None:
        public["tasks"] = config.tasks
    return public


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    part = values.get(name)
    if not isinstance(part, dict):
        raise ConfigError(f"config.json: {name} is missing")
    return part


def _renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    unknown = set(values) - set(names)
    if unknown:
        raise ConfigError(f"config.json: the vision encoder has unknown values: {', '.join(sorted(unknown))}")
    return {names[name]: value for name, value in values.items()}


def _named_back(config: Any, names: dict[str, str]) -> dict[str, Any]:
    values = {name: getattr(config, ours) for name, ours in names.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _text_config(language: dict[str, Any]) -> TextConfig:
    for name, allowed in _TEXT_FIXED.items():
        if name in language and language[name] not in allowed:
            raise ConfigError(f"config.json: {name} is {language[name]!r}, this model only knows {allowed[0]!r}")
    heads = language.get("num_attention_heads")
    if language.get("num_key_value_heads", heads) != heads:
        raise ConfigError("config.json: num_key_value_heads differs from num_attention_heads")
    values = {name: language[name] for name in _TEXT_NAMES if name in language}
    return TextConfig(**values, answer_window=language.get(_WINDOW))


def _check_projector(projector: dict[str, Any], config: DeepseekOcrConfig) -> None:
    expected = {
        "projector_type": "linear",
        "input_dim": 2 * config.clip_config.hidden_size,
        "n_embed": config.text_config.hidden_size,
    }
    for name, value in expected.items():
        if projector.get(name, value) != value:
            raise ConfigError(f"config.json: projector_config.{name} is {projector[name]!r}, expected {value!r}")
