"""The dimensions of a DeepSeek-OCR (v1) model, and the geometry of the views it was trained on.

Owns names and defaults; the defaults are those of `deepseek-ai/DeepSeek-OCR`. Reads no files: `public_config.py`
converts the JSON layout of public checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling


class SamConfig(PreTrainedConfig):
    """First encoder: a SAM ViT over every patch of a view, then convolutions that shrink its grid."""

    model_type: ClassVar[str] = "deepseek_ocr_sam"
    base_config_key: ClassVar[str] = "sam_config"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4.0
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    layer_norm_eps: float = 1e-6
    stem_channels: tuple[int, ...] = ()
    """Empty: one patchify convolution, as published. Otherwise a 3x3 stride-2 convolution per entry."""
    neck_channels: int = 256
    downsample_channels: tuple[int, ...] = (512, 1024)
    downsample_strides: tuple[int, ...] = (2, 2)

    def __post_init__(self, **kwargs: Any) -> None:
        """Turn JSON lists into tuples and refuse dimensions that do not fit together."""
        super().__post_init__(**kwargs)
        for name in ("global_layers", "stem_channels", "downsample_channels", "downsample_strides"):
            setattr(self, name, tuple(getattr(self, name)))
        _require_divisible("sam_config", self.hidden_size, self.num_attention_heads)
        if len(self.downsample_channels) != 2 or len(self.downsample_strides) != 2:
            raise ValueError("sam_config: downsample_channels and downsample_strides need two entries each")
        if self.stem_channels and 2 ** len(self.stem_channels) != self.patch_size:
            raise ValueError(
                f"sam_config: {len(self.stem_channels)} stride-2 convolutions in stem_channels make patches of "
                f"{2 ** len(self.stem_channels)} px, patch_size is {self.patch_size}"
            )

    @property
    def grid_size(self) -> int:
        """Patches along one side of a view of `image_size`, for which the position embeddings are stored."""
        return self.image_size // self.patch_size

    @property
    def downsample(self) -> int:
        """Patches along one side of a vision token."""
        return math.prod(self.downsample_strides)


class ClipConfig(PreTrainedConfig):
    """Second encoder: a CLIP ViT whose patch embeddings are the first encoder's tokens."""

    model_type: ClassVar[str] = "deepseek_ocr_clip"
    base_config_key: ClassVar[str] = "clip_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse dimensions that do not fit together."""
        super().__post_init__(**kwargs)
        _require_divisible("clip_config", self.hidden_size, self.num_attention_heads)

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the grid for which the position embeddings are stored."""
        return self.image_size // self.patch_size


class TextConfig(PreTrainedConfig):
    """Decoder: multi-head attention, a few dense layers, then mixture-of-experts layers."""

    model_type: ClassVar[str] = "deepseek_ocr_text"
    base_config_key: ClassVar[str] = "text_config"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 129280
    hidden_size: int = 1280
    intermediate_size: int = 6848
    num_hidden_layers: int = 12
    num_attention_heads: int = 10
    max_position_embeddings: int = 8192
    answer_window: int | None = None
    """Answer tokens that a token of the answer sees, itself included, besides all of the prompt; None: all of them."""
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    first_k_dense_replace: int = 1
    moe_intermediate_size: int = 896
    n_routed_experts: int = 64
    num_experts_per_tok: int = 6
    n_shared_experts: int = 2
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    router_aux_loss_coef: float = 0.0
    moe_implementation: str = "grouped"
    """`grouped` runs each expert that has tokens, `dense` computes all experts with static shapes, `stacked` runs all
    of them in one kernel (bfloat16 on CUDA)."""
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | None = 1
    pad_token_id: int | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse dimensions that do not fit together."""
        super().__post_init__(**kwargs)
        _require_divisible("text_config", self.hidden_size, self.num_attention_heads)
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"text_config: num_experts_per_tok is {self.num_experts_per_tok}, "
                f"there are {self.n_routed_experts} routed experts"
            )
        if self.answer_window is not None and self.answer_window < 1:
            raise ValueError(f"text_config: answer_window is {self.answer_window}, a token sees itself at least")

    @property
    def num_key_value_heads(self) -> int:
        """As many as query heads: the family does not share keys between heads."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


class DeepseekOcrConfig(PreTrainedConfig):
    """The whole model: two vision encoders, a projector, a decoder, and the geometry of its views."""

    model_type: ClassVar[str] = "deepseek_vl_v2"
    other_model_types: ClassVar[tuple[str, ...]] = ()
    """Other spellings in config.json."""
    default_geometry: ClassVar[GeometryConfig] = GeometryConfig()
    """What `geometry` leaves out."""
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "sam_config": SamConfig,
        "clip_config": ClipConfig,
        "text_config": TextConfig,
    }

    sam_config: Any = None
    clip_config: Any = None
    text_config: Any = None
    geometry: dict[str, Any] | None = None
    """Values of `GeometryConfig` in JSON; what is missing is that of `default_geometry`."""
    tasks: list[str] | None = None
    """Names of the tasks that the checkpoint was trained for; None: all."""
    image_token_id: int = 128815
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the parts from dictionaries, and refuse parts that do not fit together."""
        for name, part in self.sub_configs.items():
            value = getattr(self, name)
            setattr(self, name, part(**value) if isinstance(value, dict) else value or part())
        super().__post_init__(**kwargs)
        if self.sam_config.downsample_channels[-1] != self.clip_config.hidden_size:
            raise ValueError(
                f"downsample_channels end in {self.sam_config.downsample_channels[-1]}, which feed a CLIP of width "
                f"{self.clip_config.hidden_size}"
            )
        geometry = self.geometry_config()
        if (geometry.patch_px, geometry.downsample) != (self.sam_config.patch_size, self.sam_config.downsample):
            raise ValueError(
                f"geometry counts {geometry.patch_px} px patches shrunk {geometry.downsample} times, the encoder has "
                f"{self.sam_config.patch_size} px and {self.sam_config.downsample}"
            )

    def geometry_config(self) -> GeometryConfig:
        """Sizes and rules of this checkpoint's views.

        Returns:
            The values of `geometry`, with types and defaults.

        Raises:
            ValueError: `geometry` has an unknown name or value.
        """
        return geometry_from_json(self.geometry or {}, self.default_geometry)


def geometry_from_json(values: dict[str, Any], default: GeometryConfig | None = None) -> GeometryConfig:
    """Build a `GeometryConfig` from JSON values.

    Args:
        values: any subset of its fields.
        default: has the values of the others; None: those of DeepSeek-OCR.

    Returns:
        The typed values.

    Raises:
        ValueError: A name or value is unknown.
    """
    unknown = set(values) - {field.name for field in dataclasses.fields(GeometryConfig)}
    if unknown:
        raise ValueError(f"geometry has unknown values: {', '.join(sorted(unknown))}")
    typed = dict(values)
    for name in ("squash", "modes"):
        if name in typed:
            typed[name] = tuple(Mode(mode) for mode in typed[name])
    if "default_mode" in typed:
        typed["default_mode"] = Mode(typed["default_mode"])
    if "tiling" in typed:
        typed["tiling"] = Tiling(typed["tiling"])
    return dataclasses.replace(default or GeometryConfig(), **typed)


def geometry_to_json(geometry: GeometryConfig) -> dict[str, Any]:
    """Convert a `GeometryConfig` to JSON values; the inverse of `geometry_from_json`."""
    values = dataclasses.asdict(geometry)
    for name in ("squash", "modes"):
        values[name] = [str(mode) for mode in values[name]]
    for name in ("default_mode", "tiling"):
        values[name] = str(values[name])
    return values


def _require_divisible(part: str, hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ValueError(f"{part}: hidden_size {hidden_size} is not a multiple of {heads} attention heads")
