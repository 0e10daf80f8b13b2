"""DeepSeek-OCR-2 with random weights as a checkpoint on disk, for measuring training where the real one cannot be had.

Speed and memory do not depend on the weights' values, nor on the longest position, which is raised for the search for
the longest text. Other dimensions are those of the public config.json files: the decoder
of deepseek-ai/DeepSeek-OCR, the encoders of deepseek-ai/DeepSeek-OCR-2. The tokenizer has the public one's size; its
words mean nothing.
"""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCAB_SIZE, IMAGE_TOKEN_ID = 129280, 128815
WEIGHT_STD = 0.02
UNKNOWN = "t5"


def public_config() -> Any:
    """Configuration with the public dimensions."""
    from transformers import DeepseekOcr2Config

    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 1280, "intermediate_size": 6848, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 10, "moe_intermediate_size": 896, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 11,
        "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 262144, "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    encoder = {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {"sam_config": {"downsample_channels": [512, 896]}, "encoder_config": encoder}
    return DeepseekOcr2Config(text_config=text, vision_config=vision)


def tiny_config() -> Any:
    """The same architecture in miniature, for trying the programs on a CPU: views of 1024 px still, and 257 tokens."""
    from transformers import DeepseekOcr2Config

    text = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"],
        "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 8192, "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    sam = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "global_attn_indexes": [],
        "output_channels": 16, "downsample_channels": [16, 32], "mlp_dim": 32,
    }  # fmt: skip
    encoder = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # fmt: skip
    return DeepseekOcr2Config(
        text_config=text, vision_config={"sam_config": sam, "encoder_config": encoder}, image_token_id=500
    )


def write_checkpoint(folder: Path, *, tiny: bool = False) -> Path:
    """Write the checkpoint unless it is there; several processes may call this at the same time.

    Args:
        folder: Its place.
        tiny: In miniature.

    Returns:
        The folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _write(partial, tiny_config() if tiny else public_config())
            partial.rename(folder)
    return folder


def _write(folder: Path, config: Any) -> None:
    from transformers import DeepseekOcr2ForConditionalGeneration, DeepseekOcr2Processor
    from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import DeepseekOcr2ImageProcessorPil

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = DeepseekOcr2ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    for weights in model.parameters():
        if weights.dim() > 1:
            nn.init.normal_(weights, 0.0, WEIGHT_STD)
    model.save_pretrained(folder)
    tokenizer = _tokenizer(config.text_config.vocab_size, config.image_token_id)
    tokenizer.save_pretrained(folder)
    DeepseekOcr2Processor(image_processor=DeepseekOcr2ImageProcessorPil(), tokenizer=tokenizer).save_pretrained(folder)


def _tokenizer(size: int, image_token_id: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {0: "<bos>", 1: "<eos>", 2: "<pad>", image_token_id: "<image>"}
    vocabulary = {special.get(number, f"t{number}"): number for number in range(size)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[2], "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **names, extra_special_tokens={"image_token": special[image_token_id]}
    )
