"""DeepSeek-OCR-2 in the engine's rows: transformers' decoder takes the same windows as ours."""

import torch
from transformers import DeepseekOcr2Config

from service.engine.cpu.runner import CpuRunner, Prompt
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.ocr2 import DeepseekOcr2Reader

NEW_TOKENS = 12


def tiny_reader() -> DeepseekOcr2Reader:
    sam = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "output_channels": 8,
        "global_attn_indexes": [0],
        "image_size": 256,
        "downsample_channels": [8, 16],
    }
    encoder = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    text = {
        "vocab_size": 300,
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "n_group": 1,
        "topk_group": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    config = DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder}, text_config=text, image_token_id=3
    )
    model = DeepseekOcr2Reader(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def test_rows_of_different_length_choose_what_each_chooses_alone():
    model = tiny_reader()
    prompts = [[0, 10, 11, 12, 13], [0, 20, 21], [0, 30, 31, 32, 33]]
    alone = [
        model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)[
            0, len(ids) :
        ].tolist()
        for ids in prompts
    ]
    runner = CpuRunner(model, max_rows=3, max_tokens=64, eos_id=1, rule=LoopRule())
    rows = [[choice.token] for choice in runner.prefill([Prompt(ids, torch.zeros(0, 24)) for ids in prompts])]
    for _ in range(NEW_TOKENS - 1):
        for row, choice in zip(rows, runner.decode([row[-1] for row in rows], {}), strict=True):
            row.append(choice.token)
    assert rows == alone
