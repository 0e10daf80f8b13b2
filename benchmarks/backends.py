"""Do the trainer's backends work on this device? A short run with each; its adapter is written, loaded and compared.

A few updates through `trainer.training.run` itself, with cached features, validation by reading, and checkpoints.
`benchmarks/training.py` measures speed. DeepSeek-OCR-2 has its public dimensions and random weights; nano is the
checkpoint in this repository, on pages of forms with a cell for each letter, whose error rate has to fall.

    python benchmarks/backends.py write-ocr2 /tmp/ocr2
    python benchmarks/backends.py run peft|unsloth shared/nano --updates 150 --batch-size 32
    python benchmarks/backends.py run unsloth /tmp/ocr2 --updates 6 --four-bit
    python benchmarks/backends.py write-ocr1 /tmp/ocr1
    python benchmarks/backends.py write-pages /tmp/pages --count 64
    python benchmarks/backends.py read shared/nano /tmp/volume forms --page /tmp/pages/00000.png

`read` is the service's engine with a published adapter: it answers a page with the adapter and without. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.backends.protocol import AdaptedModel, AdapterRequest, Backend
    from trainer.training.data import RunData
    from trainer.training.dataset import SampleReader
    from trainer.training.options import TrainingOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PAGE_PX = (640, 200)
TOLERANCE = 0.05
"""Of the loss: a written adapter is float32, its base bfloat16 or 4 bits."""


def draw_pages(folder: Path, count: int, seed: int) -> None:
    """Write pages of a form with one letter in each cell: `00000.png` with `00000.txt`."""
    from PIL import Image, ImageDraw, ImageFont

    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        lines = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(5, 12))) for _ in range(rng.randint(1, 3))]
        image = Image.new("L", PAGE_PX, 255)
        canvas = ImageDraw.Draw(image)
        for row, line in enumerate(lines):
            text = "|" + "|".join(line) + "|"
            canvas.text((20, 20 + 50 * row), text, font=ImageFont.load_default(28), fill=0)
        image.save(folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text(" ".join(lines), encoding="utf-8")


def write_checkpoint(command: str, folder: Path, *, tiny: bool) -> None:
    """Write a checkpoint with random weights: DeepSeek-OCR-2, or DeepSeek-OCR with nano's tokenizer."""
    import torch

    from benchmarks.random_model import write_random_checkpoint, write_random_ocr2
    from shared.deepseek_ocr.nano_config import nano_config

    if command == "write-ocr2":
        write_random_ocr2(folder, tiny=tiny)
        return
    nano = Path(__file__).resolve().parents[1] / "shared" / "nano"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_random_checkpoint(folder, nano, device, nano_config() if tiny else None)


def read(options: argparse.Namespace) -> dict[str, object]:
    """Answer a page in the service's engine with a published adapter and without."""
    import torch

    from benchmarks.reading import prepared
    from service.engine.config import EngineLimits
    from service.engine.factory import make_engine
    from service.engine.protocol import SamplingParams, SequenceFailure, SequenceRequest, SequenceResult
    from shared.contract.prompts import Task, prompt_for
    from shared.contract.volume import AdapterVolume
    from shared.deepseek_ocr.loading import load_checkpoint
    from trainer.evaluation.samples import open_page

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    checkpoint = load_checkpoint(options.model, device, dtype)
    engine = make_engine(checkpoint, EngineLimits(batch_size=4, max_sequence_tokens=2048, adapter_slots=1))
    reference = AdapterVolume(options.volume).resolve(options.name)
    adapter = str(reference)
    engine.load_adapter(adapter, options.volume / reference.name / str(reference.version))
    page = prepared(open_page(options.page), checkpoint.geometry)
    for model_id in (engine.info.model_id, adapter):
        engine.submit(SequenceRequest(model_id, page, prompt_for(Task.FREE), SamplingParams(64), model_id))
    texts: dict[str, str] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise RuntimeError(f"{event.code}: {event.detail}")  # noqa: TRY004 - not a wrong type
            if isinstance(event, SequenceResult):
                texts[event.sequence_id] = event.text
    truth = options.page.with_suffix(".txt")
    return {
        "model": Path(options.model).name,
        "adapter": adapter,
        "device": device,
        "truth": truth.read_text(encoding="utf-8") if truth.is_file() else None,
        "text_of_base": texts[engine.info.model_id],
        "text_of_adapter": texts[adapter],
        "differs": texts[adapter] != texts[engine.info.model_id],
    }


def load_backend(name: str) -> Backend:
    """Import one of the backends."""
    if name == "unsloth":
        from trainer.backends.select import unsloth_backend

        return unsloth_backend(None, required=True)
    from trainer.backends.peft import adapt

    return adapt


def training_options(options: argparse.Namespace, output: Path) -> TrainingOptions:
    """What the flags ask of the training loop."""
    from trainer.training.options import MLP, make_options

    return make_options({
        "dataset_name": "drawn", "output_dir": output, "model": options.model, "batch_size": options.batch_size,
        "max_steps": options.updates, "eval_steps": max(options.updates // 2, 1), "learning_rate": options.rate,
        "logging_steps": 1, "use_qlora": options.four_bit, "gradient_checkpointing": options.checkpointing,
        "max_new_tokens": 64 if options.updates > 20 else 8, "use_tensorboard": False,
        "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", *(MLP if options.mlp else ())),
    })  # fmt: skip


def read_pages(work: Path, reader: SampleReader) -> RunData:
    """The drawn pages, as the training loop takes them."""
    from trainer.data.sources.columns import Columns
    from trainer.data.sources.folder import FolderSource
    from trainer.data.sources.rejected_rows import RejectedRows
    from trainer.data.sources.samples import read_samples
    from trainer.training.data import RunData

    pages = RunData()
    for name, into in (("train", pages.train), ("validation", pages.validation)):
        for sample in read_samples(FolderSource(work / name), Columns(), RejectedRows()):
            reader.take(sample, into)
    return pages


def run(options: argparse.Namespace) -> dict[str, object]:
    """Train, write, load again, compare."""
    started_s = time.perf_counter()
    # Before torch: Unsloth changes what is imported after it.
    backend = load_backend(options.backend)
    import torch
    import transformers

    from trainer.training.run import train

    transformers.logging.set_verbosity_error()
    import_s = time.perf_counter() - started_s
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = Path(tempfile.mkdtemp())
    draw_pages(work / "train", options.samples, 1)
    draw_pages(work / "validation", 16 if options.updates > 20 else 2, 2)

    events: list[dict[str, Any]] = []
    kept: list[Any] = []

    def watched(request: AdapterRequest) -> AdaptedModel:
        sys.stderr.write(f"imported after {time.perf_counter() - started_s:.1f} s\n")
        adapted = backend(request)
        sys.stderr.write(f"loaded after {time.perf_counter() - started_s:.1f} s\n")
        kept.extend((adapted, request))
        return adapted

    def noted(event: Mapping[str, Any]) -> None:
        events.append(dict(event))
        sys.stderr.write(json.dumps({"s": round(time.perf_counter() - started_s, 1), **event}) + "\n")

    summary = train(
        training_options(options, work / "run"),
        watched,
        device,
        progress=noted,
        data=lambda reader: read_pages(work, reader),
    )
    logs = [event for event in events if event["event"] == "log" and "loss" in event]
    steps_s = sorted(b["seconds"] - a["seconds"] for a, b in pairwise(logs[2:]))
    record = {
        "backend": options.backend,
        "model": Path(options.model).name,
        "four_bit": options.four_bit,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "updates": summary.steps,
        "batch_size": options.batch_size,
        "import_s": round(import_s, 1),
        "median_step_s": round(steps_s[len(steps_s) // 2], 3) if steps_s else None,
        "first_loss": round(logs[0]["loss"], 4),
        "last_loss": round(logs[-1]["loss"], 4),
        "base_cer": summary.base_cer,
        "best_cer": summary.best_cer,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
        "trainable": json.loads((work / "run" / "run.json").read_text())["trainable_parameters"],
    }
    return (
        record
        | compare(kept[0], kept[1], options, work / "run" / "checkpoints" / f"step-{summary.steps}", device)
        | {"total_s": round(time.perf_counter() - started_s, 1)}
    )


def compare(adapted: Any, request: Any, options: argparse.Namespace, best: Path, device: Any) -> dict[str, object]:
    """The loss of a sequence with the adapter from its file: on the model that trained it, and on a fresh base."""
    import torch

    from shared.deepseek_ocr.loading import load_checkpoint
    from trainer.backends.peft import add_adapter
    from trainer.training.adapter import load_adapter

    ids = torch.tensor([[0, *(10 + step % 200 for step in range(120))]], device=device)

    def loss(model: Any) -> float:
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return float(model(input_ids=ids, labels=ids, use_cache=False)["loss"])

    load_adapter(adapted.model, best)
    on_trained = loss(adapted.model)
    fresh = load_checkpoint(options.model, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    plain = loss(fresh.model)
    again = add_adapter(fresh.model, adapted.modules, request)
    load_adapter(again, best)
    reloaded = loss(again)
    return {
        "loss_of_base": round(plain, 4),
        "loss_on_trained_model": round(on_trained, 4),
        "loss_on_fresh_model": round(reloaded, 4),
        "agree": abs(on_trained - reloaded) <= TOLERANCE * max(abs(on_trained), 1.0),
    }


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write-ocr2")
    write.add_argument("folder", type=Path)
    write.add_argument("--tiny", action="store_true", help="to try the program out on a CPU")
    first = commands.add_parser("write-ocr1")
    first.add_argument("folder", type=Path)
    first.add_argument("--tiny", action="store_true", help="nano's dimensions, to try the program out on a CPU")
    drawn = commands.add_parser("write-pages")
    drawn.add_argument("folder", type=Path)
    drawn.add_argument("--count", type=int, default=64)
    reader = commands.add_parser("read")
    reader.add_argument("model")
    reader.add_argument("volume", type=Path)
    reader.add_argument("name")
    reader.add_argument("--page", type=Path, required=True)
    go = commands.add_parser("run")
    go.add_argument("backend", choices=("peft", "unsloth"))
    go.add_argument("model")
    go.add_argument("--updates", type=int, default=6)
    go.add_argument("--batch-size", type=int, default=4)
    go.add_argument("--samples", type=int, default=64)
    go.add_argument("--rate", type=float, default=1e-3)
    go.add_argument("--four-bit", action="store_true")
    go.add_argument("--mlp", action="store_true", help="adapt dense layers and shared experts too")
    go.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    if options.command == "write-pages":
        draw_pages(options.folder, options.count, 1)
        return 0
    if options.command.startswith("write"):
        write_checkpoint(options.command, options.folder, tiny=options.tiny)
        return 0
    record = read(options) if options.command == "read" else run(options)
    sys.stdout.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
