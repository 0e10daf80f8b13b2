"""Reads with transformers' own Unlimited-OCR, answer window and all: what `test_unlimited.py` compares with.

Needs transformers 5.23.0 (see docs/development.md) and torch 2.13. Writes `unlimited_expected.json` next to itself, of
the model whose weights are in `model/`:

    PYTHONPATH=.venv-judge python tests/unit/shared/deepseek_ocr/reference/judge_unlimited.py

With a folder and seeds it writes models with other weights, as `save_pretrained` does, each in a folder of its seed's
name with its `expected.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from make_model_reference import IMAGE_TOKEN, build_model, pixels

HERE = Path(__file__).parent
SEED = 26
WINDOW, NUM_TOKENS = 24, 200
PROMPT = [17, 90, 33, 210, 5, 64]
CASES = {
    "page": {"globals": [2], "px": 128, "tiles": 0, "grid": [0, 0]},
    "tiles": {"globals": [1], "px": 192, "tiles": 6, "grid": [3, 2]},
    "together": {"globals": [1, 2, 3], "px": 128, "tiles": 0, "grid": [0, 0]},
}


def noise(seed: int, count: int, size_px: int) -> torch.Tensor:
    """Views, uint8 `[count, size, size, 3]`; the test makes the same."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, size_px // 8, size_px // 8, 3), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


@torch.no_grad()
def read(model, case: dict) -> dict:
    """Greedy tokens of transformers' `generate`, how far the second choices are behind, and the last logits."""
    images: dict = {"pixel_values": torch.cat([pixels(noise(seed, 1, case["px"])) for seed in case["globals"]])}
    if case["tiles"]:
        images |= {
            "pixel_values_local": pixels(noise(100, case["tiles"], 128)),
            "num_local_patches": [case["tiles"]],
            "patches_grid": [case["grid"]],
        }
    features = model.get_image_features(**images).pooler_output
    ids = torch.tensor([[0] + [IMAGE_TOKEN] * sum(map(len, features)) + PROMPT])
    output = model.generate(
        ids, **images, max_new_tokens=NUM_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    logits = torch.cat(output.logits)
    top = logits.topk(2).values
    return {
        **case,
        "vision_tokens": [len(page) for page in features],
        "tokens": output.sequences[0, ids.shape[1] :].tolist(),
        "margins": [round(float(margin), 5) for margin in top[:, 0] - top[:, 1]],
        "last_logits": [round(float(value), 4) for value in logits[-1, :16]],
    }


def main() -> None:
    """Write what the arguments ask for."""
    for seed in map(int, sys.argv[2:] or [SEED]):
        model = build_model(seed, sliding_window=WINDOW, layer_types=["reference_sliding_attention"] * 3)
        cases = {name: read(model, case) for name, case in CASES.items()}
        expected = json.dumps({"window": WINDOW, "prompt": PROMPT, "cases": cases})
        if len(sys.argv) == 1:
            (HERE / "unlimited_expected.json").write_text(expected.replace(', "', ',\n"') + "\n")
            continue
        folder = Path(sys.argv[1]) / str(seed)
        model.save_pretrained(folder)
        (folder / "expected.json").write_text(expected)


if __name__ == "__main__":
    main()
