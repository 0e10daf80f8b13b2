"""A short training run, timed: one way of training on one device.

The run is `trainer.training.run`'s own, on pages drawn here or on a source, without checks. A few samples are seen
again and again, so that cached vision features are there after the first pass, as in all but the first pass of a real
run. Call it once in a process: Unsloth changes what is imported after it.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.train import choose_backend
from trainer.training.options import make_options

if TYPE_CHECKING:
    from trainer.training.data import RunData
    from trainer.training.dataset import SampleReader

WARM_PASSES, BATCHES_A_PASS = 2, 2
PAGE_PX = (1000, 1400)


@dataclass(frozen=True, slots=True)
class Way:
    """One way of training.

    Attributes:
        backend: `peft` or `unsloth`.
        caches_features: whether vision features are kept.
    """

    backend: str
    caches_features: bool


WAYS = {
    "standard": Way("peft", caches_features=False),
    "cached": Way("peft", caches_features=True),
    "unsloth": Way("unsloth", caches_features=False),
    "unsloth-cached": Way("unsloth", caches_features=True),
}
"""By name; the first is what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained.

    Attributes:
        model: checkpoint.
        device: `cpu`, `cuda` or `cuda:N`.
        batch_size: samples a step.
        text_tokens: about as many tokens has each answer.
        steps: timed ones.
        use_qlora: frozen weights in 4 bits.
        gradient_checkpointing: activations are computed twice.
        dataset_name: source of pages; None to draw them.
    """

    model: str
    device: str
    batch_size: int = 4
    text_tokens: int = 512
    steps: int = 10
    use_qlora: bool = False
    gradient_checkpointing: bool = True
    dataset_name: str | None = None


def measure(way: str, case: Case, scratch: Path) -> dict[str, Any]:
    """Train for some steps.

    Args:
        way: one of `WAYS`.
        case: what is trained.
        scratch: an empty folder for pages and run.

    Returns:
        Milliseconds a step (mean of the timed ones), peak of allocated memory (None on a CPU), tokens of answers a
        second, losses.

    Raises:
        TrainingError: it cannot be trained so.
    """
    chosen = WAYS[way]
    num_samples = case.batch_size * BATCHES_A_PASS
    warm = WARM_PASSES * BATCHES_A_PASS
    options = make_options({
        "dataset_name": case.dataset_name or "drawn", "model": case.model, "backend": chosen.backend,
        "output_dir": scratch / "run", "batch_size": case.batch_size, "max_steps": warm + case.steps,
        "max_train_samples": num_samples, "logging_steps": 1, "use_qlora": case.use_qlora,
        "gradient_checkpointing": case.gradient_checkpointing, "use_tensorboard": False, "validation_share": 0.0,
        "save_steps": warm + case.steps, "max_length": 8192 + case.text_tokens,
        **({} if chosen.caches_features else {"feature_memory_gb": 0.0, "feature_disk_gb": 0.0}),
    })  # fmt: skip
    # First of all: unsloth changes what is imported after it.
    backend = choose_backend(options, case.device)
    import torch
    import transformers

    from trainer.training.run import train

    transformers.logging.set_verbosity_error()
    device = torch.device(case.device)
    is_cuda = device.type == "cuda"
    events: list[dict[str, Any]] = []

    def hear(event: Mapping[str, Any]) -> None:
        if event["event"] == "start" and is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        if is_cuda:
            torch.cuda.synchronize(device)
        events.append(dict(event))

    data = None if case.dataset_name else drawn_pages(scratch / "pages", num_samples, case.text_tokens)
    train(options, backend, device, progress=hear, data=data)
    logs = [event for event in events if event["event"] == "log" and "loss" in event]
    step_s = (logs[-1]["seconds"] - logs[warm - 1]["seconds"]) / (len(logs) - warm)
    return {
        "mode": way,
        **asdict(case),
        "model": Path(case.model).name,
        "dataset_name": Path(case.dataset_name).name if case.dataset_name else None,
        "step_ms": round(1e3 * step_s, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if is_cuda else None,
        "first_loss": logs[0]["loss"],
        "last_loss": logs[-1]["loss"],
    }


def drawn_pages(folder: Path, count: int, text_tokens: int) -> Callable[[SampleReader], RunData]:
    """Pages for a run, drawn when it asks for them.

    Args:
        folder: gets images and texts.
        count: pages.
        text_tokens: of each text, by the model's own tokenizer.

    Returns:
        What `train` takes as `data`.
    """

    def read(reader: SampleReader) -> RunData:
        from PIL import Image, ImageDraw, ImageFont

        from trainer.data.sources.columns import Columns
        from trainer.data.sources.folder import FolderSource
        from trainer.data.sources.rejected_rows import RejectedRows
        from trainer.data.sources.samples import read_samples
        from trainer.training.data import RunData

        chance = random.Random(0)
        folder.mkdir()
        for number in range(count):
            text = _text(chance, reader.encode, text_tokens)
            image = Image.new("L", PAGE_PX, 255)
            lines = [text[start : start + 80] for start in range(0, len(text), 80)]
            ImageDraw.Draw(image).multiline_text((40, 40), "\n".join(lines), font=ImageFont.load_default(20), fill=0)
            image.save(folder / f"{number:04d}.png")
            (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
        pages = RunData()
        for sample in read_samples(FolderSource(folder), Columns(), RejectedRows()):
            reader.take(sample, pages.train)
        return pages

    return read


def _text(chance: random.Random, encode: Callable[[str], list[int]], text_tokens: int) -> str:
    """Words of random letters, as many tokens long as wanted, except for the last word."""
    words: list[str] = []
    while len(encode(" ".join(words))) < text_tokens:
        new = (
            "".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 7)))
            for _ in range(1 + text_tokens // 16)
        )
        words.extend(new)
    while len(words) > 1 and len(encode(" ".join(words))) > text_tokens:
        words.pop()
    return " ".join(words)
