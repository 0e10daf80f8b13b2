"""The recipe of `shared/images/orientation.npz`, which finds turned pages: draw pages, cut windows, train, write.

Pages are drawn and degraded by `trainer.data.render`, from texts and faces of given folders, and seen through the same
code as in the service. A window is shown in its four turns, and the network learns which one is upright.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from shared.images.ink import relief_of
from shared.images.orientation import WINDOW_PX, cut_windows
from trainer.data.errors import DataError, RowError
from trainer.data.render.degrade import degrade
from trainer.data.render.faces import FaceSet
from trainer.data.render.pages import PageStyle, draw_pages
from trainer.nano.corpus import synthetic_text

HIDDEN = (64, 32)
WINDOWS_A_PAGE = 80
HELD_OUT_SHARE = 0.1
"""Of the faces; pages drawn with them are for measuring."""
_BATCH = 512
_PLAIN_MAKERS = (
    synthetic_text.amount,
    synthetic_text.date,
    synthetic_text.person,
    synthetic_text.phone,
    synthetic_text.iban,
    synthetic_text.random_string,
)
"""Lines that need no corpus."""


@dataclass(frozen=True, slots=True)
class OrientationRecipe:
    """What to train with."""

    fonts: tuple[Path, ...]
    texts: tuple[Path, ...]
    """Folders with UTF-8 files `*.txt`."""
    pages: int = 700
    epochs: int = 8
    seed: int = 0


def train(recipe: OrientationRecipe, out: Path) -> dict[str, float]:
    """Draw, train and write the weights.

    Args:
        recipe: Fonts, texts and sizes.
        out: The `.npz` file.

    Returns:
        Shares of windows that were right, for trained and for held-out faces.
    """
    rng = Random(recipe.seed)
    torch.manual_seed(recipe.seed)
    seen, held_out = _split(FaceSet(recipe.fonts), rng)
    lines = _lines(recipe.texts)
    train_NHW = draw_windows(seen, lines, recipe.pages, rng)
    test_NHW = draw_windows(held_out, lines, max(recipe.pages // 10, 20), rng)
    sys.stderr.write(f"{len(train_NHW)} windows to train on, {len(test_NHW)} to measure\n")
    network = _network()
    _fit(network, torch.from_numpy(train_NHW), recipe)
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    arrays: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        arrays[f"w{number}"] = layer.weight.detach().numpy().T.astype(np.float16)
        arrays[f"b{number}"] = layer.bias.detach().numpy().astype(np.float16)
    np.savez_compressed(out, **arrays)
    return {
        "seen_faces": _accuracy(network, torch.from_numpy(train_NHW[: len(test_NHW)])),
        "held_out_faces": _accuracy(network, torch.from_numpy(test_NHW)),
    }


def draw_windows(faces: FaceSet, lines: list[str], pages: int, rng: Random) -> NDArray[np.uint8]:
    """Windows of drawn pages, all upright, `[N, px, px]`."""
    windows: list[NDArray[np.uint8]] = []
    start_s = time.monotonic()
    while len(windows) < pages:
        image = _page(faces, lines, rng)
        if image is not None:
            relief = relief_of(image.convert("RGB"))
            windows.append(cut_windows(relief, WINDOWS_A_PAGE))
            if len(windows) % 500 == 0:
                sys.stderr.write(f"{len(windows)} pages, {time.monotonic() - start_s:.0f} s\n")
    return np.concatenate(windows)


def _page(faces: FaceSet, lines: list[str], rng: Random) -> Image.Image | None:
    """A part of a page; None if no face can draw it."""
    size = rng.randint(14, 40)
    style = PageStyle(rng.randint(400, 1000), rng.randint(200, 700), 24, (size, size), rng.uniform(1.0, 1.6))
    start = rng.randrange(len(lines))
    chosen = lines[start : start + 12]
    if rng.random() < 0.3:
        chosen = [rng.choice(_PLAIN_MAKERS)(rng, None) for _ in range(12)]
    if rng.random() < 0.12:
        chosen = [line.upper() for line in chosen]
    try:
        page = next(draw_pages("\n".join(chosen), faces, style, rng), None)
    except (RowError, DataError):
        return None
    if page is None:
        return None
    chance = np.random.default_rng(rng.randrange(2**32))
    grey = np.asarray(page.image)
    if rng.random() < 0.75:
        grey, _ = degrade(grey, chance)
    return Image.fromarray(grey)


def _split(faces: FaceSet, rng: Random) -> tuple[FaceSet, FaceSet]:
    """Faces to train on and others, by files."""
    files = sorted({face.path for face in faces.faces if face.path is not None})
    held = set(rng.sample(files, max(1, round(HELD_OUT_SHARE * len(files)))))
    parts = []
    for wanted in (False, True):
        part = FaceSet([])
        part.faces = tuple(face for face in faces.faces if (face.path in held) is wanted)
        parts.append(part)
    return parts[0], parts[1]


def _lines(folders: tuple[Path, ...]) -> list[str]:
    texts = [path.read_text(encoding="utf-8", errors="ignore") for folder in folders for path in folder.rglob("*.txt")]
    return [line.strip() for text in texts for line in text.split("\n") if 3 < len(line.strip()) < 400]


def _network() -> nn.Sequential:
    sizes = (WINDOW_PX * WINDOW_PX, *HIDDEN, 1)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _scores(network: nn.Sequential, windows_NHW: Tensor) -> Tensor:
    """`[N, 4]`: how upright each turn of each window looks."""
    turned = [torch.rot90(windows_NHW, -turn, (1, 2)).flatten(1) for turn in range(4)]
    scores_NR: Tensor = network(torch.cat(turned).float() / 255).reshape(4, len(windows_NHW)).T
    return scores_NR


def _fit(network: nn.Sequential, windows_NHW: Tensor, recipe: OrientationRecipe) -> None:
    steps = recipe.epochs * (len(windows_NHW) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 1))
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(windows_NHW))
        total = 0.0
        for first in range(0, len(order) - _BATCH + 1, _BATCH):
            batch = windows_NHW[order[first : first + _BATCH]]
            upright = torch.zeros(len(batch), dtype=torch.long)
            loss = nn.functional.cross_entropy(_scores(network, batch), upright)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        sys.stderr.write(f"epoch {epoch + 1}: loss {total / max(len(order) // _BATCH, 1):.3f}\n")


@torch.no_grad()
def _accuracy(network: nn.Sequential, windows_NHW: Tensor) -> float:
    right = [(_scores(network, part).argmax(1) == 0).float() for part in windows_NHW.split(4096)]
    return round(float(torch.cat(right).mean()), 4)
