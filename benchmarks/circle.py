"""The circle on one device: adapters are trained while the service is under load, and the service answers with them.

    python benchmarks/circle.py --out auto                             the family on a GPU, Unsloth, 16 and 4 bits
    python benchmarks/circle.py --models unlimited-ocr --ways qlora    one model, one way
    python benchmarks/circle.py --tiny --device cpu                    in miniature with PEFT, on a CPU

For each model of the family, with its public dimensions and random weights:

1. The service starts over an adapter volume with two random adapters. Clients keep asking for pages, half of them of
   the base and half of these adapters, with answers of `--tokens` drawn tokens.
2. `python -m trainer train` trains an adapter on the same device meanwhile: `lora` in 16 bits and `qlora` over a 4-bit
   base, both at once, each a text of its own, on pages drawn here.
3. `python -m trainer publish` puts each on the volume, with `--force`, as random weights have no error rate to beat.
   Other requests ask for its name all the time: the time from the rename of the version's folder to the first text
   and to the whole answer is theirs. `open_meanwhile` counts the requests of others that had no whole answer yet when
   that text came, and so were in its batches or waited for them.
4. Base and all adapters read one page at the same time, with probabilities (`POST /v1/chat/completions`, `logprobs`).
   Then the service stops, and they are compared with what the trainer's own reading says of the same page: `trained`
   is the model that was trained, loaded as it was trained with the adapter from the run's folder, `full` is the base in
   16 bits with the adapter through PEFT. `max_difference` is of natural logarithms of the chosen tokens' probabilities,
   up to and with the first token that differs; `same_tokens` of `tokens` says how many are the same. The first that
   differs has to be nearly a tie: the trainer's token is looked up among those that the service nearly chose, and how
   much less likely it was counts as a difference, too. An answer of `qlora` is served over a base in 16 bits, so it
   has to equal `full`; `trained` then shows what 4 bits change.

Prints what it does, and for each model a JSON line; `--out FILE` appends the lines, `auto` to `benchmarks/results`. The
status is 1 if an answer is not the adapter's, differs from the trained model's by more than the tolerance, or came
while no others were open.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx

from benchmarks.demo_loop import ROOT, DemoError, service
from benchmarks.online import Load, Sent, send, text_page
from benchmarks.origin import TRAINING_PACKAGES, command, keep, origin
from trainer.config import child_environment

NANO = ROOT / "shared" / "nano"
WAYS = {"lora": "The circle closes in sixteen bits.", "qlora": "Four bits were enough to train this one."}
"""Each way's name and the text of all of its pages."""
OTHERS = ("other-a", "other-b")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODE = "base"
"""One view; a page of its size is not resized, so that service and trainer see the same pixels."""
PAGE_PX, TINY_PAGE_PX = 1024, 64
NUM_PAGES = 8
ANSWER_TOKENS = 24
ALTERNATIVES = 20
"""The most that a chat completion gives for a token."""
LEARNING_RATE = {"deepseek-ocr": "2e-3", "deepseek-ocr-2": "1e-3", "unlimited-ocr": "2e-3"}
"""At which so few updates of random weights end in words: at 1e-3 the first and the third learn to say nothing."""
TOLERANCE = {"cuda": 0.25, "cpu": 2e-3}
"""Of logarithms of probabilities: of bfloat16, whose logits of trained adapters reach 20; of float32."""
PAUSE_S = 0.01
FIRST_ANSWER_TIMEOUT_S = 60.0
FORCE = "a benchmark with random weights, which have no error rate to beat"
FAMILY = ("deepseek-ocr", "deepseek-ocr-2", "unlimited-ocr")


Pieces = list[tuple[str, float]]
"""An answer's tokens with their log probabilities."""


@dataclass(frozen=True, slots=True)
class ServedPiece:
    """A token of a served answer."""

    text: str
    log_probability: float
    alternatives: dict[str, float]
    """The likeliest tokens here with their log probabilities, the chosen one among them."""


class CircleError(RuntimeError):
    """A step failed; the message says which."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does."""

    models: Sequence[str]
    ways: Sequence[str]
    device: str
    tiny: bool
    backend: str
    steps: int
    rank: int
    streams: int
    tokens: int
    memory_fraction: float
    settings: dict[str, str]

    @property
    def page_px(self) -> dict[str, int]:
        """Side of the pages by model."""
        # DeepSeek-OCR-2's sizes are fixed, also in miniature.
        return {model: TINY_PAGE_PX if self.tiny and model != "deepseek-ocr-2" else PAGE_PX for model in FAMILY}

    def train_words(self, way: str, checkpoint: Path, pages: Path, run: Path) -> list[str]:
        """The training command, without `python -m trainer`."""
        return [
            "train", "--model", str(checkpoint), "--dataset-name", str(pages), "--output-dir", str(run),
            "--backend", self.backend, "--device", self.device, "--mode", MODE, "--validation-share", "0",
            "--batch-size", "4", "--max-steps", str(self.steps),
            "--learning-rate", LEARNING_RATE[checkpoint.parent.name], "--logging-steps", "1",
            "--lora-rank", str(self.rank), "--lora-alpha", str(2 * self.rank), "--target-modules", *TARGETS,
            "--gradient-checkpointing", "--no-use-tensorboard", *(["--use-qlora"] if way == "qlora" else []),
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the load."""

    model_id: str
    began_s: float
    ended_s: float
    sent: Sent


@dataclass(slots=True)
class Traffic:
    """Clients that ask for pages until they are told to stop."""

    client: httpx.AsyncClient
    load: Load
    asked: list[Asked] = field(default_factory=list)
    _stops: bool = False

    @contextlib.asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        """Keep so many requests open within a block; returns when the last of them has its answer."""
        tasks = [asyncio.create_task(self._ask(number)) for number in range(clients)]
        try:
            yield
        finally:
            self._stops = True
            await asyncio.gather(*tasks)

    async def _ask(self, number: int) -> None:
        # Each client has its model, so that all models are in every batch.
        model_id = self.load.model_ids[number % len(self.load.model_ids)]
        while not self._stops:
            began_s = time.perf_counter()
            sent = await send(self.client, self.load, number, began_s)
            self.asked.append(Asked(model_id, began_s, time.perf_counter(), sent))
            if sent.error:
                await asyncio.sleep(PAUSE_S)

    def open_at(self, moment_s: float) -> dict[str, int]:
        """Requests of the load that were open at a moment, by model; ask at the end."""
        found = Counter(each.model_id for each in self.asked if each.began_s <= moment_s <= each.ended_s)
        return dict(sorted(found.items()))

    def rate(self, began_s: float, ended_s: float) -> float | None:
        """Answered requests a second between two moments; None without any time."""
        num_done = sum(began_s <= each.ended_s <= ended_s and not each.sent.error for each in self.asked)
        return round(num_done / (ended_s - began_s), 2) if ended_s > began_s else None


@dataclass(slots=True)
class Trained:
    """A way's adapter, and what is known of it."""

    way: str
    run: Path
    train_began_s: float = 0.0
    train_ended_s: float = 0.0
    publish_s: float = 0.0
    renamed_s: float = 0.0
    first: Asked | None = None
    """The first answer."""
    text: str = ""
    pieces: list[ServedPiece] = field(default_factory=list)


@dataclass(slots=True)
class Circle:
    """One model's turn; folders and clients."""

    plan: Plan
    folder: Path
    client: httpx.AsyncClient
    base_id: str

    @property
    def checkpoint(self) -> Path:
        """Of the model."""
        return checkpoint_of(self.folder)

    @property
    def volume(self) -> Path:
        """Of its adapters."""
        return self.folder / "volume"

    async def trainer(self, name: str, words: Sequence[str]) -> None:
        """Run one of the trainer's commands; its output goes to a file.

        Raises:
            CircleError: It failed; the message has the output's end.
        """
        say(f"$ python -m trainer {' '.join(words)}")
        log = self.folder / f"{name}.log"
        # A folder each, since two processes of Unsloth would write the same files.
        cache = {"UNSLOTH_COMPILE_LOCATION": str(self.folder / f"{name}-compiled"), "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "trainer", *words, cwd=ROOT, stdout=stream, stderr=stream,
                env={**child_environment(), **cache},
            )  # fmt: skip
            async with ending(process):
                status = await process.wait()
        if status:
            raise CircleError(f"`trainer {words[0]}` ended with status {status}:\n{log.read_text()[-3000:]}")

    async def train(self, trained: Trained) -> None:
        """Train a way's adapter."""
        trained.train_began_s = time.perf_counter()
        pages = self.folder / f"pages-{trained.way}"
        await self.trainer(
            f"train-{trained.way}", self.plan.train_words(trained.way, self.checkpoint, pages, trained.run)
        )
        trained.train_ended_s = time.perf_counter()

    async def close(self, trained: Trained, load: Load) -> None:
        """Publish an adapter while a client asks for it all the time, until the service has answered."""
        began_s = time.perf_counter()
        asking = asyncio.create_task(self._first_answer(trained.way, load))
        renaming = asyncio.create_task(self._rename(trained.way))
        words = ["publish", "--adapter", str(trained.run), "--base", str(self.checkpoint), "--name", trained.way]
        await self.trainer(f"publish-{trained.way}", [*words, "--volume", str(self.volume), "--force", FORCE])
        trained.publish_s = time.perf_counter() - began_s
        trained.renamed_s = await renaming
        trained.first = await asking

    async def _rename(self, name: str) -> float:
        """When the version's folder got its name."""
        while not (self.volume / name / "1").is_dir():  # noqa: ASYNC110 -- another process's doing
            await asyncio.sleep(0.001)
        return time.perf_counter()

    async def _first_answer(self, name: str, load: Load) -> Asked:
        ends_s = time.perf_counter() + FIRST_ANSWER_TIMEOUT_S
        wanted = Load(load.pages[:1], [name], ANSWER_TOKENS, fields={"mode": MODE})
        while True:
            began_s = time.perf_counter()
            sent = await send(self.client, wanted, 0, began_s)
            if sent.error is None:
                return Asked(name, began_s, time.perf_counter(), sent)
            if sent.error != "model_not_found" or time.perf_counter() > ends_s:
                raise CircleError(f"{name} does not answer: {sent.error}")
            await asyncio.sleep(PAUSE_S)

    async def probabilities(self, model_id: str, page: bytes) -> tuple[str, list[ServedPiece]]:
        """A page's greedy answer: who says that it answered, and the tokens with their log probabilities."""
        url = f"data:image/png;base64,{base64.b64encode(page).decode()}"
        response = await self.client.post(
            "/v1/chat/completions",
            json={
                "model": model_id, "mode": MODE, "max_tokens": ANSWER_TOKENS, "logprobs": True, "temperature": 0,
                "top_logprobs": ALTERNATIVES,
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
            },
        )  # fmt: skip
        answer = response.json()
        if response.status_code != 200:
            raise CircleError(f"{model_id}: {response.status_code} {answer.get('code') or answer}")
        content = (answer["choices"][0]["logprobs"] or {"content": []})["content"]
        return answer["model"], [
            ServedPiece(
                each["token"],
                each["logprob"],
                {other["token"].strip(): other["logprob"] for other in reversed(each["top_logprobs"])},
            )
            for each in content
        ]


def checkpoint_of(folder: Path) -> Path:
    """A model's checkpoint, whose name the service shows as the base's."""
    return folder / f"{folder.name}-random"


def say(text: str) -> None:
    """A line on standard error, for people."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def write_pages(folder: Path, text: str, side_px: int) -> list[bytes]:
    """Pages to train on, all with one text."""
    folder.mkdir()
    pages = [text_page(number, (side_px, side_px)) for number in range(NUM_PAGES)]
    for number, page in enumerate(pages):
        (folder / f"{number:03d}.png").write_bytes(page)
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return pages


def write_model(model: str, folder: Path, device: str, *, tiny: bool, rank: int) -> None:
    """Write a model's checkpoint with random weights, and publish the two other adapters on its volume."""
    import torch

    from benchmarks.random_model import (
        ocr2_config,
        tiny_config,
        write_random_adapter,
        write_random_checkpoint,
        write_random_ocr2,
    )
    from shared.contract.identity import weights_revision
    from shared.contract.manifest import BaseIdentity, CodeVersion
    from shared.contract.publication import Announcement, publish
    from shared.contract.volume import AdapterVolume
    from shared.deepseek_ocr.configuration import DeepseekOcrConfig
    from shared.deepseek_ocr.ocr2_parts import text_config
    from shared.deepseek_ocr.registry import MODELS
    from shared.deepseek_ocr.unlimited import UnlimitedOcrConfig

    checkpoint = checkpoint_of(folder)
    if model == "deepseek-ocr-2":
        write_random_ocr2(checkpoint, tiny=tiny)
        text, layers = text_config(ocr2_config(tiny=tiny)), MODELS["deepseek_ocr2"].decoder
    else:
        kind = UnlimitedOcrConfig if model == "unlimited-ocr" else DeepseekOcrConfig
        config = tiny_config(kind) if tiny else kind()
        write_random_checkpoint(checkpoint, NANO, device, config)
        text, layers = config.text_config, MODELS[kind.model_type].decoder
    base = BaseIdentity(model_id=checkpoint.name, revision=weights_revision(checkpoint) or "")
    code = CodeVersion(program="benchmarks/circle.py", version="0", commit="unknown")
    for seed, name in enumerate(OTHERS):
        write_random_adapter(folder / name, text, rank, seed, dtype=torch.float32, layers=layers)
        publish(AdapterVolume(folder / "volume"), folder / name, Announcement(name, base, code, forced=FORCE))


def read_again(checkpoint: Path, page: Path, run: Path | None, plan: Plan, way: str | None) -> Pieces:
    """What the trainer reads on a page: tokens with their log probabilities.

    Args:
        checkpoint: The base.
        page: An image.
        run: Of the adapter; None for the base alone.
        plan: Device and backend.
        way: Of training, which loads the model in the same way; None: the base in full, the adapter through PEFT.
    """
    if way is not None and plan.backend == "unsloth":
        # Before anything that imports transformers.
        from trainer.backends.select import unsloth_backend as backend_of

        backend: Any = backend_of(None, required=True)
    else:
        from trainer.backends.peft import adapt as backend
    import torch

    from service.ocr.logprobs import text_pieces
    from shared.contract.prompts import Task, prompt_for
    from shared.deepseek_ocr.forms import PageViews
    from shared.deepseek_ocr.geometry import Mode, plan_views
    from shared.deepseek_ocr.grounding import parse_grounded
    from shared.deepseek_ocr.images import prepare_views
    from shared.deepseek_ocr.loading import load_checkpoint
    from shared.deepseek_ocr.registry import kind_of
    from trainer.evaluation.samples import open_page
    from trainer.reading.adapters import attach_adapter
    from trainer.reading.generation import generate_texts
    from trainer.training.adapter import load_adapter
    from trainer.training.options import make_options
    from trainer.training.setup import adapter_request

    device = torch.device(plan.device)
    loaded: Any
    if way is not None and run is not None:
        options = make_options({
            "model": str(checkpoint), "lora_rank": plan.rank, "lora_alpha": 2 * plan.rank, "target_modules": TARGETS,
            "use_qlora": way == "qlora", "gradient_checkpointing": True, "dataset_name": "drawn",
        })  # fmt: skip
        loaded = backend(adapter_request(options, device))
        load_adapter(loaded.model, run / "best")
        model = loaded.model.get_base_model()
    else:
        loaded = load_checkpoint(checkpoint, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        model = loaded.model if run is None else attach_adapter(loaded.model, run / "best").model
    image = open_page(page)
    views = plan_views(*image.size, Mode(MODE), loaded.geometry)
    prepared = PageViews(views, *prepare_views(image, views, loaded.geometry))
    prompt = prompt_for(Task.FREE, prompts=kind_of(model).prompts)
    (answer,) = generate_texts(model, loaded.tokenizer, [prepared], prompt, ANSWER_TOKENS, device)
    assert answer.token_scores is not None
    # As the service cleans it.
    grounded = parse_grounded(answer.text, *image.size)
    if not grounded.text:
        return []
    pieces = text_pieces(grounded.text, answer.text, grounded.sources, answer.token_scores)
    return [(piece.text, piece.log_probability) for piece in pieces]


def compare(served: Sequence[ServedPiece], read: Pieces) -> dict[str, Any]:
    """How far two answers have the same tokens, and how much their log probabilities differ up to there.

    `max_difference` is None where nothing can be compared, or the first token that differs is none that the service
    nearly chose.
    """
    differences: list[float] = []
    same = 0
    for ours, (their_text, their_log) in zip(served, read, strict=False):
        if ours.text.strip() != their_text.strip():
            alternative = ours.alternatives.get(their_text.strip())
            if alternative is None:
                differences.clear()
            else:
                differences += [abs(alternative - their_log), ours.log_probability - alternative]
            break
        differences.append(abs(ours.log_probability - their_log))
        same += 1
    return {
        "same_tokens": same,
        "tokens": max(len(served), len(read)),
        "max_difference": round(max(differences), 5) if differences else None,
    }


async def turn(circle: Circle, load: Load) -> tuple[list[Trained], dict[str, Any]]:
    """All that happens while the service runs: the ways' adapters, and the row's part about the rest."""
    plan, ways = circle.plan, [Trained(way, circle.folder / f"run-{way}") for way in circle.plan.ways]
    traffic = Traffic(circle.client, load)
    alone_s = time.perf_counter()
    async with traffic.running(plan.streams):
        # Until the others are loaded, and a little of the load alone.
        while len({each.model_id for each in traffic.asked if not each.sent.error}) < len(set(load.model_ids)):
            await asyncio.sleep(PAUSE_S)
            if time.perf_counter() - alone_s > FIRST_ANSWER_TIMEOUT_S:
                raise CircleError(f"no answers: {Counter(each.sent.error for each in traffic.asked)}")
        alone_s = time.perf_counter()
        await asyncio.sleep(0.5 if plan.tiny else 3.0)
        training_s = time.perf_counter()
        await asyncio.gather(*(circle.train(way) for way in ways))
        trained_s = time.perf_counter()
        for way in ways:
            await circle.close(way, load)
            assert way.first is not None
            say(f"{way.way}: answers {way.first.ended_s - way.renamed_s:.2f} s after the rename")
        names = [circle.base_id, *OTHERS, *(way.way for way in ways)]
        answers = await asyncio.gather(*(circle.probabilities(name, load.pages[0]) for name in names))
    for way, (model_id, pieces) in zip(ways, answers[1 + len(OTHERS) :], strict=True):
        if model_id != f"{way.way}@1":
            raise CircleError(f"{way.way} was asked for, {model_id} has answered")
        way.pieces, way.text = pieces, "".join(piece.text for piece in pieces)
    errors = Counter(each.sent.error for each in traffic.asked if each.sent.error)
    by_model = Counter(each.model_id for each in traffic.asked if not each.sent.error)
    return ways, {
        "base_pieces": answers[0][1],
        "open_meanwhile": {
            way.way: traffic.open_at(way.first.began_s + way.first.sent.ttft_s) for way in ways if way.first
        },
        "load": {
            "streams": plan.streams,
            "tokens": plan.tokens,
            "answered": dict(sorted(by_model.items())),
            "errors": dict(errors),
            "requests_per_s": traffic.rate(alone_s, training_s),
            "requests_per_s_while_training": traffic.rate(training_s, trained_s),
        },
    }


async def read_all(folder: Path, plan: Plan, ways: Sequence[Trained]) -> dict[str, Pieces]:
    """The trainer's readings: `base`, `full-WAY` and `trained-WAY`.

    Unsloth changes what it finds, so the last are in processes of their own with it.
    """
    names = [f"{kind}-{way.way}" for kind in ("full", "trained") for way in ways]
    shared = len(ways) if plan.backend == "unsloth" else len(names)
    groups = [["base", *names[:shared]], *([name] for name in names[shared:])]
    outputs = await asyncio.gather(*(child(plan, folder, "read", *group) for group in groups))
    found: dict[str, Pieces] = {}
    for output in outputs:
        found |= {
            name: [(text, log) for text, log in each] for name, each in json.loads(output.splitlines()[-1]).items()
        }
    return found


@contextlib.asynccontextmanager
async def ending(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Leave no process behind where a step next to it has failed."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def child(plan: Plan, folder: Path, *words: str) -> str:
    """Run this program for one step; its standard output.

    Raises:
        CircleError: It failed.
    """
    options = ["--device", plan.device, "--rank", str(plan.rank), "--backend", plan.backend]
    cache = {"UNSLOTH_COMPILE_LOCATION": str(folder / f"{words[1]}-compiled"), "HF_HUB_OFFLINE": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *options, *(["--tiny"] if plan.tiny else []), "--child-folder", str(folder),
        "--child", *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**child_environment(), **cache},
    )  # fmt: skip
    async with ending(process):
        output, errors = await process.communicate()
    if process.returncode:
        raise CircleError(f"{' '.join(words)} ended with status {process.returncode}:\n{errors.decode()[-3000:]}")
    return output.decode()


def losses(run: Path) -> list[float]:
    """Of a run's updates."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["loss"] for event in events if event["event"] == "log" and "loss" in event]


def seconds_to_text(asked: Asked, since_s: float) -> float | None:
    """To an answer's first text; None if it has none."""
    seconds = asked.began_s + asked.sent.ttft_s - since_s
    return None if math.isnan(seconds) else round(seconds, 3)


def row_of(plan: Plan, ways: Sequence[Trained], rest: dict[str, Any], readings: dict[str, Pieces]) -> dict[str, Any]:
    """The row's part about adapters, and what is wrong with it."""
    tolerance, rows, faults = TOLERANCE[plan.device.split(":")[0]], {}, []
    base_text = "".join(piece.text for piece in rest["base_pieces"])
    for way in ways:
        first, found = way.first, losses(way.run)
        assert first is not None
        same = {kind: compare(way.pieces, readings[f"{kind}-{way.way}"]) for kind in ("full", "trained")}
        open_meanwhile = rest["open_meanwhile"][way.way]
        rows[way.way] = {
            "four_bit": way.way == "qlora",
            "train_s": round(way.train_ended_s - way.train_began_s, 1),
            "first_loss": round(found[0], 4),
            "last_loss": round(found[-1], 4),
            "publish_s": round(way.publish_s, 2),
            "rename_to_first_text_s": seconds_to_text(first, way.renamed_s),
            "rename_to_answer_s": round(first.ended_s - way.renamed_s, 3),
            "open_meanwhile": open_meanwhile,
            "text": way.text[:80],
            "logarithms": same,
        }
        # What is served is the adapter over a base in full: of `qlora` that is not the model that was trained.
        judge = same["full"] if way.way == "qlora" else same["trained"]
        if not way.text:
            faults.append(f"{way.way}: the answer is empty")
        elif judge["max_difference"] is None or judge["max_difference"] > tolerance:
            faults.append(f"{way.way}: served and trained model differ: {judge}")
        if way.text == base_text:
            faults.append(f"{way.way}: the same text as the base's")
        if len(open_meanwhile) < 1 + len(OTHERS):
            faults.append(f"{way.way}: not all others were open when its first text came: {open_meanwhile}")
    base = compare(rest["base_pieces"], readings["base"])
    if base["max_difference"] is None or base["max_difference"] > tolerance:
        faults.append(f"base: served and read differ: {base}")
    if rest["load"]["errors"]:
        faults.append(f"requests failed: {rest['load']['errors']}")
    return {"ways": rows, "base": {"logarithms": base}, "load": rest["load"], "tolerance": tolerance, "faults": faults}


@dataclass(frozen=True, slots=True)
class Served:
    """What is known of a model when its service has stopped."""

    ways: list[Trained]
    rest: dict[str, Any]
    service_start_s: float


def write(plan: Plan, model: str, folder: Path) -> float:
    """Write a model's checkpoint, adapters and pages; the seconds it took."""
    began_s = time.perf_counter()
    (folder / "volume").mkdir(parents=True)
    for way in plan.ways:
        write_pages(folder / f"pages-{way}", WAYS[way], plan.page_px[model])
    if plan.device == "cpu":
        write_model(model, folder, plan.device, tiny=plan.tiny, rank=plan.rank)
    else:
        # A process that has used the device keeps some of its memory until it ends.
        asyncio.run(child(plan, folder, "write", model))
    return time.perf_counter() - began_s


def serve_model(plan: Plan, folder: Path, before: Callable[[], object]) -> Served:
    """Run the service with all that happens meanwhile; `before` is called when it is ready."""
    settings = {
        "MODEL": str(checkpoint_of(folder)), "DEVICE": plan.device.split(":")[0], "ADAPTER_SLOTS": "4",
        "ADAPTER_MAX_RANK": str(plan.rank), "ADAPTER_POLL_S": "0.25", "ADAPTER_ROLLBACK_PAGES": "0",
        "MAX_CONCURRENT_REQUESTS": "256", "MIN_CONFIDENCE": "0", "MIN_COVERAGE": "0", "BLANK_PAGES": "read",
        "ORIENTATION": "as-is", "ENGINE_STALL_S": "60", "GPU_MEMORY_FRACTION": str(plan.memory_fraction),
    }  # fmt: skip
    began_s = time.perf_counter()
    with service(folder / "volume", folder / "service.log", **settings | plan.settings) as running:
        start_s = time.perf_counter() - began_s
        before()
        return Served(*asyncio.run(ask(plan, folder, running.url)), start_s)


async def ask(plan: Plan, folder: Path, url: str) -> tuple[list[Trained], dict[str, Any]]:
    """Run `turn` with a client of its own."""
    pages = [path.read_bytes() for path in sorted((folder / f"pages-{plan.ways[0]}").glob("*.png"))]
    async with httpx.AsyncClient(base_url=url, timeout=120.0, limits=httpx.Limits(), trust_env=False) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        base_id = next(each["id"] for each in listed if each["parent"] is None)
        model_ids = [base_id, *OTHERS, base_id]
        load = Load(pages, model_ids, plan.tokens, fields={"mode": MODE, "temperature": "1"})
        return await turn(Circle(plan, folder, client, base_id), load)


def finish(plan: Plan, model: str, folder: Path, write_s: float, served: Served) -> dict[str, Any]:
    """Read again what was served; the model's row."""
    began_s = time.perf_counter()
    readings = asyncio.run(read_all(folder, plan, served.ways))
    return {
        "model": model,
        "tiny": plan.tiny,
        "backend": plan.backend,
        "rank": plan.rank,
        "steps": plan.steps,
        "write_s": round(write_s, 1),
        "service_start_s": round(served.service_start_s, 1),
        "read_again_s": round(time.perf_counter() - began_s, 1),
        **row_of(plan, served.ways, served.rest, readings),
    }


def run_models(plan: Plan, out: Path, report: Callable[[str, dict[str, Any] | CircleError], None]) -> None:
    """Run each model's circle; `report` gets its row, or why there is none, as soon as that is known.

    Checkpoints are written together, and a model is read again while the next one's service starts.
    """
    with ThreadPoolExecutor(len(plan.models)) as pool:
        writing = {model: pool.submit(write, plan, model, out / model) for model in plan.models}
        finishing: list[Future[None]] = []

        def finished(model: str, write_s: float, served: Served) -> None:
            try:
                report(model, finish(plan, model, out / model, write_s, served))
            except CircleError as error:
                report(model, error)

        for model in plan.models:
            try:
                write_s = writing[model].result()
                say(f"\n== {model}: the service, under load; training, publishing, answering")
                served = serve_model(plan, out / model, partial(wait, finishing))
            except (CircleError, DemoError) as error:
                report(model, CircleError(str(error)))
            else:
                finishing.append(pool.submit(finished, model, write_s, served))
    for row in finishing:
        row.result()


def run_child(arguments: argparse.Namespace, plan: Plan) -> None:
    """A step in this process."""
    task, *names = arguments.child
    folder: Path = arguments.child_folder
    if task == "write":
        write_model(names[0], folder, plan.device, tiny=plan.tiny, rank=plan.rank)
        return
    page = next(iter(sorted(folder.glob("pages-*")))) / "000.png"
    found = {}
    for name in names:
        kind, _, way = name.partition("-")
        run = folder / f"run-{way}" if way else None
        found[name] = read_again(checkpoint_of(folder), page, run, plan, way if kind == "trained" else None)
    print(json.dumps(found))


def parse_arguments() -> tuple[argparse.Namespace, Plan]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=FAMILY, default=list(FAMILY))
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="both, on a CPU lora alone")
    parser.add_argument("--backend", choices=("unsloth", "peft"), help="Unsloth, on a CPU PEFT")
    parser.add_argument("--device", default="cuda", help="cpu or cuda (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="models in miniature")
    parser.add_argument("--steps", type=int, default=20, help="updates of a training run (%(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of all adapters (%(default)s)")
    parser.add_argument("--streams", type=int, help="requests of the load that are open at once; 16, in miniature 4")
    parser.add_argument("--tokens", type=int, default=512, help="of an answer of the load (%(default)s)")
    parser.add_argument("--memory-fraction", type=float, default=0.5, help="of the card for the service (%(default)s)")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the service")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for all that is made")
    parser.add_argument("--out", help="file that lines are appended to, or `auto`")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--child-folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    is_cpu = given.device == "cpu"
    if given.streams is not None and given.streams <= len(OTHERS):
        parser.error(f"--streams is at least {1 + len(OTHERS)}: of the base and of each other adapter")
    if is_cpu and ("qlora" in (given.ways or ()) or given.backend == "unsloth"):
        parser.error("4 bits and Unsloth need a GPU")
    return given, Plan(
        given.models,
        given.ways or (["lora"] if is_cpu else list(WAYS)),
        given.device,
        given.tiny,
        given.backend or ("peft" if is_cpu else "unsloth"),
        given.steps,
        given.rank,
        given.streams or (4 if given.tiny else 16),
        given.tokens,
        given.memory_fraction,
        dict(each.split("=", 1) for each in given.setting),
    )


def main() -> int:
    """Run; status 1 if a circle did not close."""
    arguments, plan = parse_arguments()
    if arguments.child:
        run_child(arguments, plan)
        return 0
    failed: set[str] = set()
    with contextlib.ExitStack() as stack:
        out = (arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()

        def report(model: str, row: dict[str, Any] | CircleError) -> None:
            if isinstance(row, CircleError):
                log = out / model / "service.log"
                say(f"error: {model}: {row}\n{log.read_text(errors='replace')[-2000:] if log.is_file() else ''}")
                failed.add(model)
            else:
                failed.update([model] if row["faults"] else [])
                say("\n".join(f"{model}: {fault}" for fault in row["faults"]) or f"{model}: the circle closes")
                source = origin(plan.device, TRAINING_PACKAGES)
                keep({"benchmark": "circle", "command": command(), **source, **row}, arguments.out)
            if not arguments.keep:
                shutil.rmtree(out / model, ignore_errors=True)

        if any((out / model).exists() for model in plan.models):
            say(f"error: {out} has a model's folder already; name another one")
            return 2
        run_models(plan, out, report)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
