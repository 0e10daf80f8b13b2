"""Make geometry.json: what other people's code makes of the same images.

Executes, without copying it, `process/image_process.py` of deepseek-ai/DeepSeek-OCR (pixels, grids, token counts),
and the grid and token rules of transformers' `unlimited_ocr` (>= 5.23; grids and token counts only: it resizes with
torchvision, whose bicubic filter differs from Pillow's, and the public code's Pillow is what the checkpoints saw).

    python tests/unit/shared/deepseek_ocr/reference/geometry_reference.py PATH/TO/image_process.py > .../geometry.json

needs numpy, pillow, torch and transformers. The test needs none but numpy and pillow, and this file's `make_image`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODES = {
    "tiny": (512, 512, False),
    "small": (640, 640, False),
    "base": (1024, 1024, False),
    "large": (1280, 1280, False),
    "gundam": (1024, 640, True),
}
MIN_TILES, MAX_TILES = 2, 9
PADDING_GREY = 127
IMAGE_ID = 7

SIZES = [
    # at and around the public thresholds
    *[(1, 1), (7, 5), (512, 512), (640, 640), (639, 640), (640, 641), (641, 640), (641, 641), (641, 1), (1, 641)],
    *[(1024, 1024), (1023, 1024), (1280, 1280), (1281, 1279), (960, 1280), (1279, 853)],
    # ties between grids: same aspect difference, decided by the area covered
    *[(1250, 1000), (1000, 800), (875, 700), (1500, 1200), (700, 700), (900, 900), (1300, 1300), (1400, 700)],
    *[(700, 350), (1800, 900), (650, 1300), (1000, 1500), (1600, 1200)],
    # pages, slips, lines, banners
    *[(827, 1169), (1169, 827), (1240, 1754), (1654, 1169), (850, 1100), (1275, 1650), (300, 1200), (1200, 300)],
    *[(2000, 40), (40, 2000), (3000, 10), (333, 777), (777, 333), (1999, 1), (1, 3000), (1366, 768), (768, 1366)],
]


def make_image(width_px: int, height_px: int) -> Image.Image:
    """A deterministic picture with fine and coarse structure in every channel."""
    x = np.arange(width_px, dtype=np.uint32)[None, :]
    y = np.arange(height_px, dtype=np.uint32)[:, None]
    red = (x * 7 + y * 3) % 256
    green = (x * y // 5 + x) % 256
    blue = ((x // 9 + y // 6) % 2) * 200 + (x * 5 + y * 11) % 56
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def digest(views: np.ndarray) -> str:
    """Checksum of uint8 pixels in memory order."""
    return hashlib.sha256(np.ascontiguousarray(views).tobytes()).hexdigest()[:24]


def load_public_processor(path: Path, base_px: int, tile_px: int) -> Any:
    """The public processor with its settings for one mode; collaborators that touch no geometry are stand-ins."""
    import torch

    class PixelsOnly:
        mean = (0.5, 0.5, 0.5)

        def __call__(self, view: Image.Image) -> torch.Tensor:
            return torch.from_numpy(np.array(view))

    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 0, 1, 3

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return [2] if text else []

    stand_ins = {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.transforms": types.ModuleType("torchvision.transforms"),
        "transformers": types.ModuleType("transformers"),
        "transformers.processing_utils": types.ModuleType("transformers.processing_utils"),
        "config": types.ModuleType("config"),
    }
    stand_ins["torchvision"].transforms = stand_ins["torchvision.transforms"]
    names = {"AutoProcessor": types.SimpleNamespace(register=lambda *_: None), "BatchFeature": dict}
    vars(stand_ins["transformers"]).update(names, LlamaTokenizerFast=Tokenizer)
    vars(stand_ins["transformers.processing_utils"]).update(ProcessorMixin=object)
    vars(stand_ins["config"]).update(
        IMAGE_SIZE=tile_px, BASE_SIZE=base_px, CROP_MODE=True, MIN_CROPS=MIN_TILES, MAX_CROPS=MAX_TILES,
        PROMPT="<image>", TOKENIZER=Tokenizer(),
    )  # fmt: skip
    kept = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        module: dict[str, Any] = {"__name__": "public"}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module)
    finally:
        for name, previous in kept.items():
            sys.modules.pop(name)
            if previous is not None:
                sys.modules[name] = previous
    processor = object.__new__(module["DeepseekOCRProcessor"])
    vars(processor).update(
        image_size=tile_px, base_size=base_px, patch_size=16, downsample_ratio=4, image_transform=PixelsOnly(),
        tokenizer=Tokenizer(), image_token="<image>", image_token_id=IMAGE_ID, ignore_id=-100, pad_token="<pad>",
    )  # fmt: skip
    return processor


def run_public(processor: Any, image: Image.Image, crop: bool) -> dict[str, Any]:
    """Pixels, grid and tokens of one image; no checksum where a hairline rounds away and only padding is left."""
    [[ids, views, tiles, _, grids, counts, _]] = processor.tokenize_with_images([image], cropping=crop)
    columns, rows = (int(number) for number in grids[0])
    tiled = columns * rows > 1
    assert counts[0] == int((ids == IMAGE_ID).sum())
    return {
        "tokens": counts[0],
        "grid": [columns, rows] if tiled else [0, 0],
        "global": digest(views[0].numpy()) if (views[0] != PADDING_GREY).any() else "",
        **({"tiles": digest(tiles[0].numpy())} if tiled else {}),
    }


def load_transformers_grid() -> Callable[..., tuple[int, int]]:
    """The grid rule of transformers' unlimited_ocr, taken from its file so that torchvision is not needed."""
    import transformers

    path = Path(transformers.__file__).parent / "models/unlimited_ocr/image_processing_unlimited_ocr.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        node.decorator_list = []  # type: ignore[attr-defined]
    module: dict[str, Any] = {}
    exec(compile(tree, str(path), "exec"), module)
    return module["get_optimal_tiled_canvas"]


def count_transformers_tokens(global_px: int, grid: tuple[int, int]) -> int:
    """Token count of transformers' unlimited_ocr for a layout."""
    from transformers.models.unlimited_ocr.processing_unlimited_ocr import UnlimitedOcrProcessor

    fake = types.SimpleNamespace(
        image_processor=types.SimpleNamespace(size=None, tile_size=640), patch_size=16, downsample_ratio=4,
        image_token="#",
    )  # fmt: skip
    inputs = {"patches_grid": [grid], "num_local_patches": [grid[0] * grid[1]]}
    text = UnlimitedOcrProcessor.replace_image_token(fake, inputs, 0, size={"height": global_px, "width": global_px})
    return len(text)


def main() -> None:
    """Print the reference values; stop where the two implementations disagree."""
    choose_grid = load_transformers_grid()
    cases = []
    for mode, (base_px, tile_px, crop) in MODES.items():
        processor = load_public_processor(Path(sys.argv[1]), base_px, tile_px)
        for width_px, height_px in SIZES:
            found = run_public(processor, make_image(width_px, height_px), crop)
            tiled = crop and max(width_px, height_px) > tile_px
            grid = choose_grid((height_px, width_px), (640, 640), MIN_TILES, MAX_TILES) if tiled else (0, 0)
            second = {"grid": list(grid), "tokens": count_transformers_tokens(base_px, grid)}
            assert {name: found[name] for name in second} == second, (mode, width_px, height_px, found, second)
            cases.append({"mode": mode, "size": [width_px, height_px], **found})
    print("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")


if __name__ == "__main__":
    main()
