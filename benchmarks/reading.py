"""Reading a set's pages with the reference and with the engine, for benchmarks and tests of exactness.

The reference is `generate` of `shared.deepseek_ocr`: transformers' loop over the model's own forward pass, one page at
a time. The loop rule is out of reach in both, so that only the choice of tokens is compared; `max_new_tokens` ends
answers that would never end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from service.engine import factory as loader
from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.protocol import SamplingParams, SequenceDelta, SequenceFailure, SequenceRequest
from shared.contract.prompts import Task, prompt_for
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views
from shared.deepseek_ocr.images import prepare_views
from shared.deepseek_ocr.loading import LoadedCheckpoint
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.registry import kind_of
from trainer.evaluation.samples import Layout, Sample, load_set, open_page

NO_LOOPS = LoopRule(min_tokens=1_000_000)
SAMPLES = Path(__file__).resolve().parents[1] / "docs" / "samples"
MOST_STEPS_BETWEEN = 6
"""Steps at most between two arrivals of a random schedule."""


@dataclass(frozen=True, slots=True)
class TruePage:
    """A page ready to read, and its true text."""

    name: str
    tier: str
    page: PageViews
    truth: str


def shipped_samples() -> list[Sample]:
    """The samples included in the repository."""
    return [
        Sample(path.name, "sample", Layout.BLOCK, path, path.with_suffix(".txt").read_text(encoding="utf-8"))
        for path in sorted(SAMPLES.glob("*.png"))
    ]


def true_pages(folder: Path | None, geometry: GeometryConfig, limit: int | None = None) -> list[TruePage]:
    """Prepare the pages of a set, as `python -m trainer evaluate --data` takes it; None: the included samples.

    `limit` is pages of a tier.
    """
    samples = load_set(folder, limit=limit).samples if folder else shipped_samples()[:limit]
    return [
        TruePage(sample.name, sample.tier, prepared(open_page(sample.image_path), geometry), sample.truth)
        for sample in samples
    ]


def prepared(image: Image.Image, geometry: GeometryConfig) -> PageViews:
    """Views of an image in the default mode."""
    plan = plan_views(image.width, image.height, geometry.default_mode, geometry)
    return PageViews(plan, *prepare_views(image, plan, geometry))


@torch.inference_mode()
def reference_text(checkpoint: LoadedCheckpoint, page: PageViews, max_new_tokens: int) -> str:
    """Read a page alone with `generate`."""
    model: OcrModel = checkpoint.model
    device, plan, tokenizer = model.lm_head.weight.device, page.plan, checkpoint.tokenizer
    ids = tokenizer.encode_prompt(plan, prompt_for(Task.FREE))
    written = model.generate(
        torch.tensor([ids], device=device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
        global_views_BHWC=torch.as_tensor(page.global_view_HWC, device=device).unsqueeze(0),
        tiles_THWC=torch.as_tensor(page.tiles_THWC, device=device) if plan.num_tiles else None,
        tile_grids_B2=[(plan.tile_columns, plan.tile_rows)],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    answer = written[0, len(ids) :].tolist()
    return tokenizer.decode(token for token in answer if token != tokenizer.eos_id)


def exact_engine(
    checkpoint: LoadedCheckpoint, batch_size: int, max_new_tokens: int, *, plain: bool = False
) -> TorchEngine:
    """The engine as it is served, its loop rule out of reach, not warmed up yet.

    `plain` leaves out a GPU's kernels, to tell their rounding from the type's.
    """
    limits = EngineLimits(batch_size=batch_size, max_new_tokens=max_new_tokens, loop_rule=NO_LOOPS)
    slow_kind = replace(kind_of(checkpoint.model), has_fast_decoder=False)
    with patch.object(loader, "kind_of", lambda _: slow_kind) if plain else nullcontext():
        return loader.make_engine(checkpoint, limits)


def texts_alone(engine: TorchEngine, pages: Sequence[PageViews], max_new_tokens: int) -> Iterator[str]:
    """Read pages each of which arrives when the one before is done."""
    for page in pages:
        yield texts_in_company(engine, [page], max_new_tokens, random.Random(0))[0]


def texts_in_company(
    engine: TorchEngine, pages: Sequence[PageViews], max_new_tokens: int, choose: random.Random
) -> list[str]:
    """Read pages that arrive in random order, some steps after one another; texts in the pages' order.

    Raises:
        RuntimeError: A page failed.
    """
    order = choose.sample(range(len(pages)), len(pages))
    texts: dict[str, str] = {}
    wait = 0
    while order or engine.has_work:
        if order and wait <= 0:
            index = order.pop()
            engine.submit(
                SequenceRequest(
                    str(index),
                    pages[index],
                    prompt_for(Task.FREE),
                    SamplingParams(max_new_tokens),
                    engine.info.model_id,
                )
            )
            wait = choose.randint(0, MOST_STEPS_BETWEEN)
            continue
        wait -= 1
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise RuntimeError(f"a page failed: {event.code}: {event.detail}")  # noqa: TRY004 - not a wrong type
            if not isinstance(event, SequenceDelta):
                texts[event.sequence_id] = event.text
    return [texts[str(index)] for index in range(len(pages))]
