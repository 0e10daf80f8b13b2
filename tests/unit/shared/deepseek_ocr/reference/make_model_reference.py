"""Writes the tensors that `test_model_reference.py` compares with: an independent implementation's answers.

The independent implementation is `UnlimitedOcr*` of transformers 5.23.0, which has DeepSeek-OCR's architecture once
its sliding window is switched off. Run in an environment of its own, with torch 2.13 and that version:

    python tests/unit/shared/deepseek_ocr/reference/make_model_reference.py

It writes `model/` (config.json and model.safetensors in the public layout) and `model_expected.safetensors` beside
itself. Before writing it reads the public layout back through transformers' own key conversion and compares, so the
key names are not ours alone.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache, UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

HERE = Path(__file__).parent
IMAGE_TOKEN = 3
NUM_GREEDY = 200
MIN_MARGIN = 1e-3
"""Greedy tokens prove something only where no tie hides between first and second choice."""

SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 5,
    "global_attn_indexes": [1, 3],
    "mlp_dim": 128,
    "output_channels": 24,
    "downsample_channels": [32, 48],
}
CLIP = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 42,
    "patch_size": 14,
}
TEXT = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
    "max_position_embeddings": 1024,
    "sliding_window": 4096,
    "layer_types": ["full_attention"] * 3,
}

PUBLIC_CONFIG = {
    "architectures": ["DeepseekOCRForCausalLM"],
    "model_type": "deepseek_vl_v2",
    "image_token_id": IMAGE_TOKEN,
    "language_config": {
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
        "first_k_dense_replace": 1,
        "hidden_size": 64,
        "intermediate_size": 96,
        "kv_lora_rank": None,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "vocab_size": 256,
    },
    "projector_config": {"input_dim": 96, "model_type": "mlp_projector", "n_embed": 64, "projector_type": "linear"},
    "vision_config": {
        "model_name": "deeplip_b_l",
        "model_type": "vision",
        "width": {
            "clip-l-14-224": {
                "heads": 3,
                "image_size": 42,
                "layers": 2,
                "patch_size": 14,
                "width": 48,
                "intermediate_size": 96,
            },
            "sam_vit_b": {
                "downsample_channels": [32, 48],
                "global_attn_indexes": [1, 3],
                "heads": 2,
                "layers": 4,
                "width": 32,
                "image_size": 128,
                "window_size": 5,
                "neck_channels": 24,
            },
        },
    },
}

TO_PUBLIC = [
    (r"^model\.vision_tower\.sam_encoder\.layers\.(\d+)\.layer_norm(\d)", r"model.sam_model.blocks.\1.norm\2"),
    (r"^model\.vision_tower\.sam_encoder\.layers\.", "model.sam_model.blocks."),
    (r"^model\.vision_tower\.sam_encoder\.patch_embed\.projection", "model.sam_model.patch_embed.proj"),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv1", "model.sam_model.neck.0"),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm1", "model.sam_model.neck.1"),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv2", "model.sam_model.neck.2"),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm2", "model.sam_model.neck.3"),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv1", "model.sam_model.net_2"),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv2", "model.sam_model.net_3"),
    (r"^model\.vision_tower\.sam_encoder\.", "model.sam_model."),
    (r"^model\.vision_tower\.vision_encoder\.encoder\.", "model.vision_model.transformer."),
    (r"^model\.vision_tower\.vision_encoder\.", "model.vision_model."),
    (r"^model\.multi_modal_projector\.", "model.projector.layers."),
    (r"^model\.view_separator", "model.view_seperator"),
    (r"^model\.language_model\.", "model."),
]


def build_model(seed: int = 26, **text: object) -> UnlimitedOcrForConditionalGeneration:
    """A small model with weights large enough that attention, routing and positions all matter."""
    config = UnlimitedOcrConfig(
        vision_config={"sam_config": SAM, "encoder_config": CLIP}, text_config=TEXT | text, image_token_id=IMAGE_TOKEN
    )
    # Plain matrix products everywhere: the most literal form that transformers has.
    config._attn_implementation = "eager"
    model = UnlimitedOcrForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif "rel_pos" in name or "pos" in name:
            values = 0.5 * values
        elif name.endswith(("embed_tokens.weight", "image_newline", "view_separator", "class_embedding")):
            values = 1.0 * values
        elif parameter.ndim == 1:
            values = 0.2 * values
        else:
            fan_in = parameter.shape[-1] if parameter.ndim <= 3 else parameter[0].numel()
            values = values * 1.3 * fan_in**-0.5
        # The file holds bfloat16; the model computes in float32 with the very same numbers.
        parameter.data = values.to(torch.bfloat16).float()
    return model


def to_public(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split to the layout of deepseek-ai/DeepSeek-OCR."""
    public: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in TO_PUBLIC:
            name, changed = re.subn(pattern, replacement, name)
            if changed:
                break
        if name.endswith("experts.gate_up_proj"):
            for expert, weight in enumerate(value):
                gate, up = weight.chunk(2)
                prefix = name.removesuffix("gate_up_proj")
                public[f"{prefix}{expert}.gate_proj.weight"] = gate
                public[f"{prefix}{expert}.up_proj.weight"] = up
        elif name.endswith("experts.down_proj"):
            for expert, weight in enumerate(value):
                public[f"{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = weight
        elif ".self_attn.q_proj." in name and "vision_model" in name:
            parts = [state[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            public[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif "vision_model" not in name or not re.search(r"\.[kv]_proj\.", name):
            public[name] = value
    # Public checkpoints carry CLIP's own patch embedding, which nothing uses.
    public["model.vision_model.embeddings.patch_embedding.weight"] = torch.zeros(48, 3, 2, 2)
    return {name: value.to(torch.bfloat16).contiguous() for name, value in public.items()}


def views(size_px: int, count: int, generator: torch.Generator) -> Tensor:
    """Blurred noise, uint8 `[count, size, size, 3]`, so that neighbouring patches are related but no two alike."""
    coarse = torch.rand(count, 3, size_px // 8, size_px // 8, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bicubic").clamp(0, 255)
    return fine.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pixels(views_VHWC: Tensor) -> Tensor:
    """The published pre-processing."""
    return (views_VHWC.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def greedy(model: UnlimitedOcrForConditionalGeneration, ids: Tensor, images: dict, count: int) -> tuple[Tensor, float]:
    """Decode token by token with a cache; the smallest margin between first and second choice comes along."""
    cache = DynamicCache()
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, **images)
    tokens, margin = [], float("inf")
    for _ in range(count):
        top = output.logits[0, -1].topk(2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        tokens.append(top.indices[0])
        output = model(input_ids=top.indices[:1, None], past_key_values=cache, use_cache=True)
    return torch.stack(tokens), margin


@torch.no_grad()
def page(
    model: UnlimitedOcrForConditionalGeneration,
    global_view: Tensor,
    tiles: Tensor | None,
    grid: tuple[int, int],
    prompt: list[int],
    num_greedy: int,
) -> dict[str, Tensor]:
    """Features, logits and greedy tokens of one page."""
    images: dict = {"pixel_values": pixels(global_view)}
    if tiles is not None:
        images |= {"pixel_values_local": pixels(tiles), "num_local_patches": [len(tiles)], "patches_grid": [list(grid)]}
    features = model.get_image_features(**images).pooler_output[0]
    ids = torch.tensor([[0] + [IMAGE_TOKEN] * len(features) + prompt])
    result = {
        "global_view": global_view,
        "features": features,
        "input_ids": ids,
        "logits": model(input_ids=ids, **images).logits[0],
    }
    if tiles is not None:
        result |= {"tiles": tiles, "grid": torch.tensor([grid])}
    if num_greedy:
        result["greedy"], margin = greedy(model, ids, images, num_greedy)
        print(
            f"{len(features)} vision tokens, {len(result['greedy'].unique())} distinct greedy tokens, "
            f"smallest margin {margin:.5f}"
        )
        assert margin > MIN_MARGIN
        assert len(result["greedy"].unique()) > 50
    return result


def check_public_layout(model: UnlimitedOcrForConditionalGeneration, public: dict[str, Tensor], probe: dict) -> None:
    """Load the public layout through transformers' own conversion; it must give the same model."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(public, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        again = UnlimitedOcrForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():
        torch.testing.assert_close(again(**probe).logits, model(**probe).logits, rtol=1e-5, atol=1e-5)


def main() -> None:
    """Write everything."""
    torch.manual_seed(0)
    model = build_model()
    generator = torch.Generator().manual_seed(1)
    prompt = [17, 90, 33, 210, 5, 64]
    pages = {
        "small": page(model, views(64, 1, generator), None, (0, 0), prompt, 0),
        "stored": page(model, views(128, 1, generator), None, (0, 0), prompt, NUM_GREEDY),
        "large": page(model, views(256, 1, generator), None, (0, 0), prompt, 0),
        "gundam": page(model, views(192, 1, generator), views(128, 6, generator), (3, 2), prompt, NUM_GREEDY),
    }
    public = to_public(model.state_dict())
    probe = {"input_ids": pages["small"]["input_ids"], "pixel_values": pixels(pages["small"]["global_view"])}
    check_public_layout(model, public, probe)
    (HERE / "model").mkdir(exist_ok=True)
    (HERE / "model" / "config.json").write_text(json.dumps(PUBLIC_CONFIG, indent=2) + "\n")
    save_file(public, HERE / "model" / "model.safetensors", metadata={"format": "pt"})
    flat = {f"{name}.{key}": value.contiguous() for name, values in pages.items() for key, value in values.items()}
    save_file(flat, HERE / "model_expected.safetensors")


if __name__ == "__main__":
    main()
