"""`python -m trainer nano train`: wires fonts, texts, tokenizer, pool and loop together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.corpus.tokenizer import train_tokenizer
from trainer.nano.fonts.library import FontLibrary
from trainer.nano.pages.render import PageRenderer, Tier
from trainer.nano.training.draw import MakeDraw
from trainer.nano.training.pool import BatchStream, RenderPool
from trainer.nano.training.recipe import TIERS, Recipe
from trainer.nano.training.trainer import NanoTrainer, RunPaths, draw_validation


@dataclass(frozen=True, slots=True)
class DataPaths:
    """Folders of fonts and texts, as `nano fonts` and `nano corpus` write them, and the tokenizer's file."""

    fonts: Path
    corpus: Path
    heldout_fonts: Path
    heldout_corpus: Path
    tokenizer: Path


def train_nano(data: DataPaths, paths: RunPaths, recipe: Recipe, *, device: str, workers: int, compiled: bool) -> None:
    """Train nano within the recipe's budget; progress goes to stdout and `log.jsonl`, weights to `shards`.

    Args:
        data: fonts, texts and tokenizer.
        paths: the run's folder, and shards to carry on from.
        recipe: budget and numbers.
        device: `cuda` or `cpu`.
        workers: drawing processes; 0: one less than there are cores.
        compiled: compile the blocks, which costs about two minutes at the start.
    """
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    config = nano_config()
    config.text_config.moe_implementation = "dense"
    model = DeepseekOcrForConditionalGeneration(config)
    tokenizer = OcrTokenizer.from_file(data.tokenizer)
    trainer = NanoTrainer(model, tokenizer, recipe, paths, torch.device(device))
    if compiled:
        trainer.compile()
    geometry = config.geometry_config()
    pool = RenderPool(
        MakeDraw(data.fonts, data.corpus, data.tokenizer, geometry),
        workers or max(1, (os.cpu_count() or 2) - 1),
        recipe.max_reuse,
        recipe.seed,
    )
    stream = BatchStream(pool, geometry.tile_px, recipe.views_per_batch, seed=recipe.seed)
    try:
        held_out = MakeDraw(data.heldout_fonts, data.heldout_corpus, data.tokenizer, geometry)(12345)
        validation = draw_validation(held_out, geometry.tile_px, recipe.views_per_batch, TIERS)
        trainer.run(pool, stream, validation)
    finally:
        stream.close()
        pool.close()


def learn_vocabulary(fonts: Path, corpus: Path, out: Path, *, pages: int = 4000, seed: int = 0) -> None:
    """Learn nano's tokenizer from texts as pages show them (line breaks, tables and all), and write tokenizer.json."""
    renderer = PageRenderer(FontLibrary(fonts), Corpus(corpus), seed)
    texts = (renderer.render(Tier.BLOCK).text for _ in range(pages))
    train_tokenizer(texts, nano_config().text_config.vocab_size).save(str(out))
