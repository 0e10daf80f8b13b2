"""Converts a run's shards to the published checkpoint: 8-bit rows with scales, draft head, configuration, tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.contract.identity import DRAFT_FILE
from shared.deepseek_ocr.checkpoint import save_checkpoint
from shared.deepseek_ocr.draft_head import DraftHead, save_draft_head
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.nano.training.shards import load_shards

TOKENIZER_FILE = "tokenizer.json"


def export_checkpoint(shards: Path, tokenizer: Path, out: Path) -> dict[str, int]:
    """Write nano's checkpoint.

    Args:
        shards: folder of a run's shards.
        tokenizer: the tokenizer.json that it was trained with.
        out: folder of the checkpoint; other files in it are kept.

    Returns:
        Bytes of each file written.

    Raises:
        ValueError: the tokenizer has another size than nano's vocabulary, or the shards are broken or another model's.
    """
    config = nano_config()
    known, expected = OcrTokenizer.from_file(tokenizer).vocab_size, config.text_config.vocab_size
    if known != expected:
        raise ValueError(f"{tokenizer} has {known} ids, nano's vocabulary has {expected}")
    model = DeepseekOcrForConditionalGeneration(config)
    head = DraftHead(config.text_config.hidden_size, config.text_config.rms_norm_eps)
    run = load_shards(model, shards, {"draft": head})
    save_checkpoint(model, out, "int8")
    if "draft" in run["heads"]:
        save_draft_head(head, out)
    if tokenizer.resolve() != (out / TOKENIZER_FILE).resolve():
        shutil.copyfile(tokenizer, out / TOKENIZER_FILE)
    names = ("config.json", "model.safetensors", DRAFT_FILE, TOKENIZER_FILE)
    return {name: (out / name).stat().st_size for name in names if (out / name).is_file()}
