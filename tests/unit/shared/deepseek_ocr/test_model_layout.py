"""Our parameters against the public checkpoint's key names and shapes, written down independently of the model."""

import torch

from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.layout import public_slots
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config


def linear(name: str, out: int, into: int, *, bias: bool = True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def gated_mlp(name: str, hidden: int, width: int):
    up = {f"{name}.{part}_proj.weight": (width, hidden) for part in ("gate", "up")}
    return up | {f"{name}.down_proj.weight": (hidden, width)}


def public_sam():
    keys = {
        "pos_embed": (1, 64, 64, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "patch_embed.proj.bias": (768,),
        "neck.0.weight": (256, 768, 1, 1),
        "neck.2.weight": (256, 256, 3, 3),
        "net_2.weight": (512, 256, 3, 3),
        "net_3.weight": (1024, 512, 3, 3),
    }
    keys |= norm("neck.1", 256) | norm("neck.3", 256)
    for layer in range(12):
        block = f"blocks.{layer}"
        distances = 127 if layer in (2, 5, 8, 11) else 27
        keys |= {f"{block}.attn.rel_pos_{axis}": (distances, 64) for axis in "hw"}
        keys |= norm(f"{block}.norm1", 768) | norm(f"{block}.norm2", 768)
        keys |= linear(f"{block}.attn.qkv", 2304, 768) | linear(f"{block}.attn.proj", 768, 768)
        keys |= linear(f"{block}.mlp.lin1", 3072, 768) | linear(f"{block}.mlp.lin2", 768, 3072)
    return {f"model.sam_model.{key}": shape for key, shape in keys.items()}


def public_clip():
    keys = {"embeddings.class_embedding": (1024,), "embeddings.position_embedding.weight": (257, 1024)}
    keys |= norm("pre_layrnorm", 1024)
    for layer in range(24):
        block = f"transformer.layers.{layer}"
        keys |= norm(f"{block}.layer_norm1", 1024) | norm(f"{block}.layer_norm2", 1024)
        keys |= linear(f"{block}.self_attn.qkv_proj", 3072, 1024) | linear(f"{block}.self_attn.out_proj", 1024, 1024)
        keys |= linear(f"{block}.mlp.fc1", 4096, 1024) | linear(f"{block}.mlp.fc2", 1024, 4096)
    return {f"model.vision_model.{key}": shape for key, shape in keys.items()}


def public_decoder():
    keys = {
        "lm_head.weight": (129280, 1280),
        "model.embed_tokens.weight": (129280, 1280),
        "model.norm.weight": (1280,),
        "model.image_newline": (1280,),
        "model.view_seperator": (1280,),
    }
    keys |= linear("model.projector.layers", 1280, 2048)
    for layer in range(12):
        block = f"model.layers.{layer}"
        keys |= {f"{block}.{name}_layernorm.weight": (1280,) for name in ("input", "post_attention")}
        for part in "qkvo":
            keys |= linear(f"{block}.self_attn.{part}_proj", 1280, 1280, bias=False)
        if layer == 0:
            keys |= gated_mlp(f"{block}.mlp", 1280, 6848)
            continue
        keys[f"{block}.mlp.gate.weight"] = (64, 1280)
        keys |= gated_mlp(f"{block}.mlp.shared_experts", 1280, 1792)
        for expert in range(64):
            keys |= gated_mlp(f"{block}.mlp.experts.{expert}", 1280, 896)
    return keys


def test_public_size_has_exactly_the_public_keys_and_shapes():
    with torch.device("meta"):
        model = DeepseekOcrForConditionalGeneration(DeepseekOcrConfig())
    parameters = dict(model.named_parameters())
    slots = public_slots({name: parameter.shape for name, parameter in parameters.items()})
    ours = {key: tuple(slot.of(parameters[slot.parameter]).shape) for key, slot in slots.items()}
    assert ours == public_sam() | public_clip() | public_decoder()


def test_nothing_but_parameters_is_stored():
    with torch.device("meta"):
        model = DeepseekOcrForConditionalGeneration(DeepseekOcrConfig())
    assert list(model.buffers()) == []


def test_nano_ships_in_less_than_20_mb():
    with torch.device("meta"):
        model = DeepseekOcrForConditionalGeneration(nano_config())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 15_000_000 < count <= 19_500_000
