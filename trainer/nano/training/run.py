"""`python -m trainer nano train`: wires fonts, texts, tokenizer, pool and loop together."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.contract.processors import usable_processors
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.corpus.tokenizer import train_tokenizer
from trainer.nano.fonts.library import FontLibrary
from trainer.nano.pages.render import PageRenderer, Tier
from trainer.nano.training.draw import MakeDraw
from trainer.nano.training.parallel import Peers
from trainer.nano.training.pool import BatchStream, RenderPool
from trainer.nano.training.recipe import PDF_TIERS, TIERS, Recipe
from trainer.nano.training.trainer import NanoTrainer, RunPaths, draw_validation


@dataclass(frozen=True, slots=True)
class DataPaths:
    """Folders of fonts, texts and PDFs, as `nano fonts`, `corpus` and `pdfs` write them, and the tokenizer's file."""

    fonts: Path
    corpus: Path
    heldout_fonts: Path
    heldout_corpus: Path
    tokenizer: Path
    pdfs: Path | None = None
    heldout_pdfs: Path | None = None


def train_nano(data: DataPaths, paths: RunPaths, recipe: Recipe, *, device: str, workers: int, compiled: bool) -> None:
    """Train nano within the recipe's budget; progress goes to stdout and `log.jsonl`, weights to `shards`.

    Under torchrun each process trains on a device of its own, with its share of the cores to draw for it.

    Args:
        data: fonts, texts and tokenizer.
        paths: the run's folder, and shards to carry on from.
        recipe: budget and numbers.
        device: `cuda` or `cpu`.
        workers: drawing processes of each device; 0: one less than its share of the cores.
        compiled: compile the blocks, which costs about two minutes at the start.
    """
    peers = Peers.join()
    if device == "cuda":
        device = f"cuda:{peers.local_rank}"
        torch.cuda.set_device(device)
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    config = nano_config()
    config.text_config.moe_implementation = "dense"
    model = DeepseekOcrForConditionalGeneration(config)
    tokenizer = OcrTokenizer.from_file(data.tokenizer)
    trainer = NanoTrainer(model, tokenizer, recipe, paths, torch.device(device), peers)
    if compiled:
        trainer.compile()
    geometry = config.geometry_config()
    pool = RenderPool(
        MakeDraw(data.fonts, data.corpus, data.pdfs, data.tokenizer, geometry),
        workers or max(1, usable_processors() // peers.count - 1),
        recipe.max_reuse,
        recipe.seed + peers.rank,
    )
    tiers = frozenset(TIERS) - (PDF_TIERS if data.pdfs is None else frozenset())
    stream = BatchStream(
        pool,
        geometry.tile_px,
        trainer.square_px,
        recipe.views_per_batch,
        recipe.band_share,
        seed=recipe.seed + 100 * peers.rank,
    )
    measured = tiers - {"blank"} - (PDF_TIERS if data.heldout_pdfs is None else frozenset())
    held_out = MakeDraw(data.heldout_fonts, data.heldout_corpus, data.heldout_pdfs, data.tokenizer, geometry)
    # In a process of its own: it takes half a minute, in which blocks compile.
    aside = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        wanted = sorted(measured) if peers.is_first else []
        pages = aside.submit(draw_validation, held_out, 12345, recipe.views_per_batch, wanted)
        trainer.run(pool, stream, pages.result, tiers)
    finally:
        stream.close()
        pool.close()
        aside.shutdown(cancel_futures=True)
        peers.leave()


def learn_vocabulary(fonts: Path, corpus: Path, out: Path, *, pages: int = 4000, seed: int = 0) -> None:
    """Learn nano's tokenizer from texts as pages show them (line breaks, tables and all), and write tokenizer.json."""
    renderer = PageRenderer(FontLibrary(fonts), Corpus(corpus), seed)
    texts = (renderer.render(Tier.BLOCK).text for _ in range(pages))
    train_tokenizer(texts, nano_config().text_config.vocab_size).save(str(out))
