"""The dimensions of nano, the small checkpoint included in the repository. Knows nothing of its training."""

from __future__ import annotations

from shared.contract.prompts import Task
from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig, geometry_to_json
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling

VIEW_PX = 640
"""All views have the same size, so position embeddings are never interpolated."""

NANO_GEOMETRY = GeometryConfig(
    downsample=2,
    small_px=VIEW_PX,
    tile_px=VIEW_PX,
    global_px=VIEW_PX,
    squash=(),
    upscale=False,
    tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
    default_mode=Mode.GUNDAM,
    reads_lines=True,
)


def nano_config() -> DeepseekOcrConfig:
    """Build nano's configuration: the v1 architecture with 400 tokens a view and about 18 million parameters."""
    return DeepseekOcrConfig(
        sam_config=SamConfig(
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=VIEW_PX,
            window_size=10,
            global_layers=(2, 5),
            stem_channels=(32, 64, 128, 256),
            neck_channels=128,
            downsample_channels=(256, 320),
            downsample_strides=(2, 1),
        ),
        clip_config=ClipConfig(
            hidden_size=320,
            intermediate_size=1280,
            num_hidden_layers=2,
            num_attention_heads=5,
            image_size=280,
        ),
        text_config=TextConfig(
            vocab_size=2048,
            hidden_size=320,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=5,
            first_k_dense_replace=1,
            moe_intermediate_size=128,
            n_routed_experts=6,
            num_experts_per_tok=2,
            n_shared_experts=2,
            norm_topk_prob=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        geometry=geometry_to_json(NANO_GEOMETRY),
        tasks=[str(Task.FREE), str(Task.MARKDOWN)],
        image_token_id=3,
    )
