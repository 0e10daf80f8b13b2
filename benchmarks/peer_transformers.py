"""Peer measurement: transformers' own `generate` over this project's model; random weights, public dimensions.

    python benchmarks/peer_transformers.py CASES_AS_JSON

Called by `benchmarks/engine.py --peers transformers`. Images are prepared one after another on the calling thread, as
its users' programs do. `generate` keeps transformers' dynamic cache and reads at most `BATCH` pages together: a step
costs the same whatever the batch, and takes so long that a large case is cut down to `BATCH` requests and `MAX_TOKENS`
new tokens; its row says so.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.cases import Case, row_of
from benchmarks.peers import cases_from
from benchmarks.preparation import InlinePreparation, plan_of
from benchmarks.random_model import random_checkpoint
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.loading import LoadedCheckpoint
from shared.deepseek_ocr.protocol import OcrModel

BATCH = 16
MAX_TOKENS = 64
"""Of a case with several requests."""


@torch.inference_mode()
def read(checkpoint: LoadedCheckpoint, case: Case, device: str) -> tuple[int, int]:
    """Read a case's pages together.

    Args:
        checkpoint: The model.
        case: All of whose requests fit into one batch.
        device: Where the model is.

    Returns:
        Tokens of one prompt, and of all answers.
    """
    plan = plan_of(case.size_px, checkpoint.geometry)
    preparation = InlinePreparation({case.size_px: case.images}, checkpoint.geometry)
    pages = list(preparation.pages(case.size_px, case.requests))
    ids = checkpoint.tokenizer.encode_prompt(plan, prompt_for(Task.FREE))
    tiles = [torch.from_numpy(page.tiles_THWC) for page in pages] if plan.num_tiles else []
    model: OcrModel = checkpoint.model
    written = model.generate(
        torch.tensor([ids] * len(pages), device=device),
        attention_mask=torch.ones(len(pages), len(ids), dtype=torch.long, device=device),
        global_views_BHWC=torch.stack([torch.from_numpy(page.global_view_HWC) for page in pages]).to(device),
        tiles_THWC=torch.cat(tiles).to(device) if tiles else None,
        tile_grids_B2=[(plan.tile_columns, plan.tile_rows)] * len(pages),
        max_new_tokens=case.new_tokens,
        min_new_tokens=case.new_tokens,
        do_sample=False,
        pad_token_id=2,
    )
    # The copy waits for the device.
    answers = written[:, len(ids) :].cpu()
    return len(ids), answers.numel()


def main() -> None:
    """Measure the cases of the command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = random_checkpoint(device, torch.bfloat16)
    for asked in cases_from(sys.argv[1]):
        many = asked.requests > 1
        case = replace(
            asked,
            requests=min(asked.requests, BATCH),
            new_tokens=min(asked.new_tokens, MAX_TOKENS) if many else asked.new_tokens,
        )
        began_s = time.perf_counter()
        prompt_tokens, generated = read(checkpoint, case, device)
        wall_s = time.perf_counter() - began_s
        row = row_of("transformers", case, prompt_tokens=prompt_tokens, generated_tokens=generated, wall_s=wall_s)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
