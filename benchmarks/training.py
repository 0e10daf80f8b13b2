"""How long a LoRA training step takes, and how long a text fits into memory: Unsloth, plain PEFT and this project.

    python benchmarks/training.py --modes plain unsloth cached unsloth-cached --text-tokens 512 2048
    python benchmarks/training.py --model v1 --modes plain unsloth unsloth-cached cached-chunked cached-kept
    python benchmarks/training.py --modes plain unsloth --longest --memory-gib 24
    python benchmarks/training.py --tiny --device cpu --modes plain cached       to try the program on a CPU

Needs one GPU. This is the step alone, without the training loop around it, so that plain PEFT and Unsloth can be
compared on the same inputs. `python -m trainer benchmark` times the loop itself, also with 4-bit weights and your own
pages.

The model has DeepSeek-OCR-2's dimensions, or with `--model v1` those of DeepSeek-OCR and Unlimited-OCR, and random
weights, since speed and memory do not depend on their values. Rank 16 on the queries, keys, values and outputs of the
decoder's attention, vision frozen, one view of 1024 px (257 tokens, v1 273) a sample, AdamW, bfloat16. Modes that share
a model run in their own process, as Unsloth patches what it finds, and have a time limit. Steps are the median of seven
after three; memory is the peak of what torch has allocated. `--longest` searches for the longest answer that fits into
`--memory-gib` with one sample a step.

Modes:

- `plain` is transformers and PEFT alone, with gradient checkpointing. transformers 5.17 has no class of v1, so
  there it is this project's class with PEFT, used in the same way.
- `unsloth` is Unsloth's loading, patches and checkpointing. Of v1, which it cannot load, it is what `--backend unsloth`
  does: its adapter and its checkpoints in host memory on this project's class, with the loss piece by piece.
- `plain-cached` and `unsloth-cached` take the page's vision features from the host's memory instead of pixels, since a
  frozen encoder gives the same ones in every epoch.
- `cached` is this project's own class of the model without Unsloth: cached features, logits for the answer alone.
- `cached-chunked` is what this project's training does with `--gradient-checkpointing`: the loss piece by piece
  (`shared.deepseek_ocr.loss`). `cached-kept` is what it does without: activations are kept instead of computed twice.
  `graphed` and `graphed-chunked` are the two with `--cuda-graphs`.

Prints a table, then a JSON line for each case; `--out` takes the lines as well. Unsloth's block compilation is off
unless `--compile` is given: with it the first step took more than two minutes on an H100.

Unsloth has to be imported before transformers, so nothing of either is imported at the top.

Shape letters: B samples, L tokens, D decoder width, C colours, H and W pixels.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.origin import TRAINING_PACKAGES, command, origin
from shared.deepseek_ocr.geometry import count_vision_tokens
from trainer.config import child_environment
from trainer.training.graphs import GraphedLoss

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
IMAGE_TOKENS = {"ocr2": 257, "v1": 273}
"""Of a view of 1024 px, by model."""
ROW_MARK = "ROW "
RANK = 16
TARGETS = r"(.*language_model|model\.layers\.).*self_attn\.(q_proj|k_proj|v_proj|o_proj)"
"""Explicit: without it Unsloth also adapts the 64 routed experts (61 M trainable parameters instead of 2 M)."""
IGNORED_LABEL = -100
WHOLE_LOGITS = "cached"
IMAGE_PX = 1024
MODES = ("plain", "plain-cached", "unsloth", "unsloth-cached", "cached", "cached-kept",
         "cached-chunked", "graphed", "graphed-chunked")  # fmt: skip
OURS = ("cached", "graphed")
KEPT = ("cached-kept", "graphed")
"""They keep activations; all others compute them twice."""
SEED = 0
WARM_STEPS, TIMED_STEPS = 3, 7


def main() -> int:
    """Run the cases; status 1 if a mode failed."""
    options = _options()
    if options.child:
        return _child(options)
    checkpoint = write_checkpoint(options.checkpoint, tiny=options.tiny, model=options.model)
    rows, failed = [], False
    for modes in _families(options.modes):
        found, trouble = _run(modes, checkpoint, options)
        rows += found
        failed |= trouble is not None
        print("\n".join([_table(found), *([f"{' '.join(modes)}: {trouble}"] if trouble else [])]), flush=True)
        if options.out is not None:
            # At once, so that whatever ends this program ends it with what is known.
            with options.out.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in found)
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(IMAGE_TOKENS), default="ocr2", help="whose dimensions (%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["plain", "unsloth", "cached", "unsloth-cached"])
    parser.add_argument("--text-tokens", nargs="+", type=int, default=[512, 2048], metavar="N")
    parser.add_argument("--batch", type=int, default=4, metavar="N")
    parser.add_argument("--longest", action="store_true", help="search for the longest answer instead of timing")
    parser.add_argument("--memory-gib", type=float, default=24.0, metavar="GIB", help="for --longest (%(default)s)")
    parser.add_argument("--limit-tokens", type=int, default=131072, metavar="N", help="end of the search (%(default)s)")
    parser.add_argument("--limit-s", type=float, default=100.0, metavar="S", help="for each process (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="leave Unsloth's block compilation on")
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, to try the program on a CPU")
    parser.add_argument("--checkpoint", type=Path, default=None, metavar="DIR", help="where random weights are kept")
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the JSON lines")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = f"{options.model}-{'tiny' if options.tiny else 'random'}"
    options.checkpoint = options.checkpoint or Path("/tmp") / name  # noqa: S108
    return options


def _families(modes: Sequence[str]) -> list[list[str]]:
    """Modes with the same model, which one process measures one after another."""
    return [list(group) for _, group in groupby(modes, key=family)]


def _run(
    modes: Sequence[str], checkpoint: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], str | None]:
    """Run modes of one family in their own process: their rows, and what went wrong."""
    words = [sys.executable, __file__, "--child", "--modes", *modes, "--checkpoint", str(checkpoint)]
    words += ["--text-tokens", *map(str, options.text_tokens), "--batch", str(options.batch), "--model", options.model]
    words += ["--device", options.device, "--memory-gib", str(options.memory_gib)]
    words += ["--limit-tokens", str(options.limit_tokens), "--limit-s", str(options.limit_s)]
    words += ["--longest"] if options.longest else []
    start_s = time.monotonic()
    trouble = None
    process = subprocess.Popen(
        words, env=_environment(options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=options.limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        trouble = f"ended after {options.limit_s:.0f} s"
    rows = [json.loads(line.removeprefix(ROW_MARK)) for line in output.splitlines() if line.startswith(ROW_MARK)]
    if process.returncode and trouble is None:
        trouble = f"status {process.returncode}"
    if trouble is not None:
        sys.stderr.write(f"-- {' '.join(modes)}: {trouble}\n{output[-3000:]}\n")
    wall_s = round(time.monotonic() - start_s, 1)
    shared = {"command": command(), "wall_s": wall_s, "unsloth_compile": options.compile}
    return [row | shared | ({"trouble": trouble} if trouble else {}) for row in rows], trouble


def _environment(options: argparse.Namespace) -> dict[str, str]:
    return {
        **child_environment(),
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_DISABLE": "0" if options.compile else "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _child(options: argparse.Namespace) -> int:
    """Measure modes that share a model; each row is printed at once."""
    start_s = time.monotonic()
    if options.modes[0].startswith("unsloth"):
        import unsloth  # noqa: F401 - first: it patches what is imported after it

    device = torch.device(options.device)
    if options.longest:
        limit_memory(device, options.memory_gib)
    longest = max(4096, *options.text_tokens)
    trained = load(options.modes[0], str(options.checkpoint), device, longest)
    shared: dict[str, Any] = {"benchmark": "training", "model": "v1" if trained.is_v1 else "ocr2"}
    shared["image_tokens"] = trained.image_tokens
    shared["trainable"] = trained.trainable
    shared["load_s"] = round(time.monotonic() - start_s, 1)

    def report(row: dict[str, Any]) -> None:
        source = origin(options.device, TRAINING_PACKAGES)
        print(ROW_MARK + json.dumps({"mode": trained.mode} | shared | row | source), flush=True)

    for place, mode in enumerate(options.modes):
        trained = replace(trained, mode=mode)
        if options.longest:
            left_s = options.limit_s - (time.monotonic() - start_s) - 10
            found = longest_context(trained, options.limit_tokens, left_s / (len(options.modes) - place))
            report({"case": "longest", "memory_gib": options.memory_gib} | found)
            continue
        for text_tokens in options.text_tokens:
            try:
                report({"case": "step"} | time_steps(trained, options.batch, text_tokens))
            except torch.OutOfMemoryError:
                report({"case": "step", "batch": options.batch, "text_tokens": text_tokens, "out_of_memory": True})
                torch.cuda.empty_cache()
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    keys = ("mode", "batch", "text_tokens", "step_ms", "peak_gib", "first_step_s", "first_loss", "longest_text_tokens",
            "too_long_text_tokens", "tries", "out_of_memory", "load_s", "wall_s")  # fmt: skip
    return "\n".join("  ".join(f"{key} {row[key]}" for key in keys if row.get(key) is not None) for row in rows)


def time_steps(trained: Trained, batch: int, text_tokens: int) -> dict[str, Any]:
    """Time training steps.

    Returns:
        The median step in ms, the first one in s (compiling included), the peak of allocated memory since loading, and
        the first loss, which shows that every mode computes the same.
    """
    step = make_step(trained, batch, text_tokens)
    reset_peak(trained.device)
    seconds, first_loss = [], 0.0
    for number in range(WARM_STEPS + TIMED_STEPS):
        synchronise(trained.device)
        start_s = time.perf_counter()
        loss = step()
        synchronise(trained.device)
        seconds.append(time.perf_counter() - start_s)
        first_loss = float(loss) if number == 0 else first_loss
    timed = sorted(seconds[WARM_STEPS:])
    return {
        "batch": batch,
        "text_tokens": text_tokens,
        "step_ms": round(timed[len(timed) // 2] * 1e3, 1),
        "peak_gib": round(peak_bytes(trained.device) / 2**30, 2),
        "first_step_s": round(seconds[0], 2),
        "first_loss": round(first_loss, 4),
    }


def longest_context(trained: Trained, limit_tokens: int, give_up_s: float) -> dict[str, Any]:
    """Search for the longest answer that fits into memory with one sample a step, to about 6 %.

    The process's memory is limited already. The search ends after `give_up_s` with what is known. None as the shortest
    length that failed means that none failed.
    """
    start_s = time.monotonic()
    works, fails, tries = 0, None, 0
    length = 1024
    while time.monotonic() - start_s < give_up_s:
        tries += 1
        if _fits(trained, length):
            works = length
        else:
            fails = length
        if works >= limit_tokens or (fails is not None and fails - works <= max(works // 16, 256)):
            break
        length = min(2 * works, limit_tokens) if fails is None else (works + fails) // 2 // 64 * 64
    return {"batch": 1, "longest_text_tokens": works, "too_long_text_tokens": fails, "tries": tries}


def limit_memory(device: torch.device, memory_gib: float) -> None:
    """Let this process allocate no more than that."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(memory_gib * 2**30 / total, 1.0), index)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory that was allocated at once; 0 on a CPU, where it is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _fits(trained: Trained, text_tokens: int) -> bool:
    try:
        loss = make_step(trained, 1, text_tokens)()
        synchronise(trained.device)
    except torch.OutOfMemoryError:
        fits = False
    else:
        fits = bool(loss.isfinite())
    trained.model.zero_grad(set_to_none=True)
    if trained.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


@dataclass(frozen=True, slots=True)
class Trained:
    """A model with an adapter, ready for steps."""

    mode: str
    model: Any
    device: torch.device
    image_tokens: int
    image_px: int = IMAGE_PX

    @property
    def is_cached(self) -> bool:
        """Whether steps start from vision features."""
        return "cached" in self.mode or self.is_graphed

    @property
    def is_ours(self) -> bool:
        """Whether the model is this project's class."""
        return self.mode.startswith(OURS)

    @property
    def is_v1(self) -> bool:
        """Whether the model is this project's class in every mode."""
        return self.model.config.model_type != "deepseek_ocr2"

    @property
    def keeps_logits(self) -> bool:
        """Whether steps ask for the loss of the answer's tokens alone."""
        return self.is_ours or (self.is_v1 and self.mode.startswith("unsloth"))

    @property
    def is_graphed(self) -> bool:
        """Whether forward and backward are recorded once."""
        return self.mode.startswith("graphed")

    @property
    def trainable(self) -> int:
        """Trained parameters."""
        return sum(weights.numel() for weights in self.model.parameters() if weights.requires_grad)


def family(mode: str) -> str:
    """Modes of one family use the same model differently."""
    if mode.startswith(OURS):
        return "kept" if mode in KEPT else "recomputed"
    return mode.partition("-")[0]


def load(mode: str, checkpoint: str, device: torch.device, max_seq_length: int) -> Trained:
    """Load a checkpoint and add an adapter, in one of `MODES`; in training mode."""
    is_v1 = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))["model_type"] != "deepseek_ocr2"
    if is_v1 and mode.startswith("unsloth"):
        model = _unsloth_v1(checkpoint, device, max_seq_length)
    elif mode.startswith("unsloth"):
        model = _unsloth(checkpoint, max_seq_length)
    elif is_v1 or mode.startswith(OURS):
        model = _ours(checkpoint, device, recomputes=mode not in KEPT)
    else:
        from transformers import AutoModelForImageTextToText

        model = _with_peft(
            AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=_dtype(device), device_map={"": str(device)})
        )
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = model.config
    if not is_v1:
        return Trained(mode, model.train(), device, IMAGE_TOKENS["ocr2"], config.vision_config.sam_config.image_size)
    geometry = config.geometry_config()
    tokens = count_vision_tokens(geometry.base_px, 0, 0, geometry)
    return Trained(mode, model.train(), device, tokens, geometry.base_px)


def _ours(checkpoint: str, device: torch.device, *, recomputes: bool) -> Any:
    from shared.deepseek_ocr.loading import load_checkpoint
    from trainer.backends.peft import recompute_layers, stack_experts

    base: Any = load_checkpoint(checkpoint, device, _dtype(device)).model
    if device.type == "cuda":
        stack_experts(base)
    model = _with_peft(base)
    if recomputes:
        recompute_layers(base, keeps_chance=False)
    return model


def _unsloth_v1(checkpoint: str, device: torch.device, max_seq_length: int) -> Any:
    from trainer.backends.protocol import AdapterRequest
    from trainer.backends.unsloth import adapt
    from trainer.training.options import ATTENTION
    from trainer.training.targets import choose_modules

    request = AdapterRequest(
        checkpoint=checkpoint, device=device, rank=RANK, alpha=RANK, dropout=0.0, use_rslora=False, in_4bit=False,
        gradient_checkpointing=True, max_length=max_seq_length, seed=SEED,
        choose=lambda model: choose_modules(model, ATTENTION, with_vision=False),
    )  # fmt: skip
    return adapt(request).model


def make_step(trained: Trained, batch: int, text_tokens: int) -> Callable[[], Tensor]:
    """A function that does forward, backward and update and returns the loss; always the same images, new texts."""
    model, device = trained.model, trained.device
    weights = [each for each in model.parameters() if each.requires_grad]
    for name, each in model.named_parameters():
        if "lora_B" in name:
            each.data.zero_()  # whatever was trained before, the first loss is the base model's
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=device.type == "cuda")
    torch.manual_seed(SEED)
    if trained.is_v1:
        size = (batch, trained.image_px, trained.image_px, 3)
        views_BHWC = torch.randint(256, size, dtype=torch.uint8).to(device)
        images: dict[str, Any] = {"global_views_BHWC": views_BHWC}
    else:
        pixels_BCHW = torch.randn((batch, 3, trained.image_px, trained.image_px), dtype=_dtype(device)).to(device)
        images = {"pixel_values": pixels_BCHW, "num_local_patches": [0] * batch}
    features = _features(trained, images) if trained.is_cached else []
    fixed = _arguments(trained, text_tokens)

    def loss_of(inputs: Mapping[str, Any]) -> Tensor:
        # Inside, as what autocast has cast must not outlive a recording.
        with _autocast(device):
            return model(**inputs, **fixed).loss

    graphed = GraphedLoss(loss_of, weights) if trained.is_graphed else None

    def step() -> Tensor:
        inputs = _inputs(trained, batch, text_tokens, features)
        if not trained.is_cached:
            inputs |= images
        loss: Tensor
        if graphed is not None:
            loss = graphed.backward(inputs)
        else:
            loss = loss_of(inputs)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _unsloth(checkpoint: str, max_seq_length: int) -> Any:
    from unsloth import FastVisionModel

    model, _ = FastVisionModel.from_pretrained(
        checkpoint,
        load_in_4bit=False,
        max_seq_length=max_seq_length,
        use_gradient_checkpointing="unsloth",
        dtype=torch.bfloat16,
    )
    model = FastVisionModel.get_peft_model(
        model, target_modules=TARGETS, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", random_state=SEED
    )
    FastVisionModel.for_training(model)
    return model


def _with_peft(base: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))


def _features(trained: Trained, images: dict[str, Any]) -> list[Tensor]:
    """Vision features `[L, D]` of each page, kept where the training loop keeps them."""
    base = trained.model.get_base_model()
    with torch.no_grad(), _autocast(trained.device):
        if trained.is_v1:
            found = base.image_features(images["global_views_BHWC"])
        else:
            pages = images["pixel_values"]
            found = [base.model.get_image_features(page_CHW[None]).pooler_output[0] for page_CHW in pages]
    kept = [features_LD.to("cpu", _dtype(trained.device)) for features_LD in found]
    return [features_LD.pin_memory() if trained.device.type == "cuda" else features_LD for features_LD in kept]


def _inputs(trained: Trained, batch: int, text_tokens: int, features: list[Tensor]) -> dict[str, Any]:
    config, device = trained.model.config, trained.device
    last = config.get_text_config().vocab_size * 2 // 3
    text_BL = torch.randint(100, last, (batch, text_tokens))
    image_BL = torch.full((batch, trained.image_tokens), config.image_token_id)
    ids_BL = torch.cat([torch.zeros(batch, 1, dtype=torch.long), image_BL, text_BL], 1).to(device)
    labels_BL = ids_BL.clone()
    labels_BL[:, : trained.image_tokens + 1] = IGNORED_LABEL
    kept_labels_BL = labels_BL[:, -text_tokens - 1 :] if trained.keeps_logits else labels_BL
    # Our own class needs no mask for causal attention.
    masks = {} if trained.is_ours or trained.is_v1 else {"attention_mask": torch.ones_like(ids_BL)}
    if not features:
        return {"input_ids": ids_BL, "labels": kept_labels_BL, **masks}
    features_BLD = torch.stack([features_LD.to(device, non_blocking=True) for features_LD in features])
    embeds_BLD = trained.model.get_input_embeddings()(ids_BL)
    start, stop = 1, 1 + trained.image_tokens
    embeds_BLD = torch.cat([embeds_BLD[:, :start], features_BLD.to(embeds_BLD.dtype), embeds_BLD[:, stop:]], 1)
    return {"inputs_embeds": embeds_BLD, "labels": kept_labels_BL, **masks}


def _arguments(trained: Trained, text_tokens: int) -> dict[str, Any]:
    """What each step says besides its tensors."""
    if not trained.keeps_logits:
        return {"use_cache": False} if trained.is_v1 else {}
    return {"logits_to_keep": text_tokens + 1, "use_cache": False, "loss_alone": trained.mode != WHOLE_LOGITS}


def _autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def write_checkpoint(folder: Path, *, tiny: bool = False, model: str = "ocr2") -> Path:
    """Write the checkpoint unless it exists; several processes may call this at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            from benchmarks.random_model import tiny_config, write_random_checkpoint, write_random_ocr2

            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            if model == "ocr2":
                write_random_ocr2(partial, tiny=tiny)
            else:
                device = "cuda" if torch.cuda.is_available() else "cpu"
                write_random_checkpoint(partial, NANO, device, tiny_config() if tiny else None)
            partial.rename(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
