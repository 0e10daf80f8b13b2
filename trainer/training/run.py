"""A training run from start to end: model, data, loop, summary.

`<output-dir>/` holds `run.json` (options, data, versions), `log.jsonl` (an event a line), `checkpoints/step-N/` and
`best/`, the adapter that read the held-out pages best. Knows neither the command line nor how a model is loaded.
"""

from __future__ import annotations

import shutil
import signal
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.backends.protocol import Backend
from trainer.tracing import span
from trainer.training.adapter import adapter_shapes
from trainer.training.callbacks import ProgressCallback, StopCallback, StopRequest
from trainer.training.checked import BEST
from trainer.training.checkpoints import (
    CHECKPOINTS,
    newest_valid,
    reporting_full_disk,
    validation_error,
    verify_adapter,
)
from trainer.training.data import RunData, load_data
from trainer.training.dataset import ImageStore, SampleReader
from trainer.training.distributed import broadcast_first, reporting_lost_processes
from trainer.training.errors import TrainingCode, TrainingError, TrainingStopped
from trainer.training.events import LOG_FILE, read_events
from trainer.training.options import TrainingOptions
from trainer.training.output import CACHE, make_record, rank, run_folder, settle_record, write_seen
from trainer.training.reward_options import RewardOptions
from trainer.training.setup import TrainingSetup, adapter_request, sample_reader, set_up
from trainer.training.start import begin_with


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run produced.

    Attributes:
        output: its folder.
        steps: updates made.
        best_cer: lowest error rate of a check; None without held-out pages.
        base_cer: error rate of the base model on the same pages.
        num_held_out: pages that it was measured on.
        max_steps: updates that were planned.
        earned_alike: whether rewards never told the answers of a page apart, so that nothing was learned.
    """

    output: Path
    steps: int
    best_cer: float | None
    base_cer: float | None
    num_held_out: int = 0
    max_steps: int = 0
    earned_alike: bool = False

    def __str__(self) -> str:
        if self.earned_alike:
            return (
                f"{self.output / BEST}: nothing was learned in {self.steps} updates, as all answers of a page earned "
                "the same; go on from an adapter that reads better, or draw with a higher --temperature"
            )
        if self.best_cer is None:
            return (
                f"{self.output / BEST}: the last adapter of {self.steps} updates; nothing was held out to measure it on"
            )
        was = "" if self.base_cer is None else f", base model {100 * self.base_cer:.2f} %"
        early = f"; stopped early, {self.max_steps} were planned" if self.steps < self.max_steps else ""
        return (
            f"{self.output / BEST}: the best adapter of {self.steps} updates; {self.num_held_out} held-out pages: "
            f"CER {100 * self.best_cer:.2f} %{was}{early}"
        )


def train(
    options: TrainingOptions,
    backend: Backend,
    device: torch.device,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    rewards: RewardOptions | None = None,
    data: Callable[[SampleReader], RunData] | None = None,
) -> RunSummary:
    """Train an adapter.

    Args:
        options: the run's options.
        backend: loads the base model and adds the adapter.
        device: where to train.
        resume: continue from the newest valid checkpoint, if there is one.
        overwrite: delete an earlier run in the same folder.
        progress: gets every event.
        rewards: learn from drawn answers and their rewards; None: from the true texts.
        data: makes the samples; None to read what the options name.

    Returns:
        The summary.

    Raises:
        TrainingError: the run cannot start or continue.
        TrainingStopped: it was asked to stop, and can be resumed.
    """
    output = options.output_dir
    with ExitStack() as stack:
        stack.enter_context(reporting_lost_processes())
        stack.enter_context(reporting_full_disk(output))
        stack.enter_context(run_folder(output, resume=resume, overwrite=overwrite))
        request = stack.enter_context(StopRequest().listening())
        with span("train.model"):
            adapted = backend(adapter_request(options, device))
            start = begin_with(adapted, options.init_from) if options.init_from else None
        store = stack.enter_context(ImageStore(output / CACHE / f"pages-{rank()}.bin"))
        reader = sample_reader(options, adapted, store)
        with span("train.data") as reading:
            pages = (data or (lambda into: load_data(options, into)))(reader)
            reading.set_attribute("deepsynth.samples", len(pages.train))
        settle_record(output, make_record(options, adapted, pages, start, rewards), resume=resume)
        # What the first adapter saw, the last one has seen.
        write_seen(output, list(dict.fromkeys([*(start.seen if start else ()), *pages.train.seen])))
        run = set_up(options, adapted, reader, pages, device, stack, progress, rewards)
        stack.callback(run.log.close)
        run.trainer.add_callback(StopCallback(request))
        if pages.note:
            run.log.write("data", note=pages.note)
            run.log.say(pages.note)
        if start is not None and not start.seen:
            run.log.say(f"what {start.label} was trained on is unknown: name its set with `publish --trained-on`, too")
        checkpoint = _checkpoint(output, run) if resume else None
        with span("train.fit") as fitting:
            _fit(run, checkpoint, output, has_start=start is not None)
            fitting.set_attribute("deepsynth.updates", run.trainer.state.global_step)
        if request.is_set:
            raise TrainingStopped(
                f"stopped after update {run.trainer.state.global_step}; "
                "the same command with --resume continues from there",
                request.signal_number or signal.SIGTERM,
            )
        summary = replace(_finish(run, output), num_held_out=len(pages.validation))
    shutil.rmtree(output / CACHE, ignore_errors=True)
    return summary


def _fit(run: TrainingSetup, checkpoint: Path | None, output: Path, *, has_start: bool) -> None:
    if run.check is not None and broadcast_first(_logged(output, "base")) is None:
        # What the adapter has to be better than.
        with run.trainer.adapter_model.disable_adapter():
            base = run.trainer.read_held_out()
        run.log.write("base", None, **base)
    logged = broadcast_first(_logged(output, "base"))
    if logged is not None:
        run.facts.add("base/cer", float(logged["cer"]))
    if run.check is not None and has_start and checkpoint is None:
        run.trainer.evaluate()  # no later adapter is kept that reads worse than the one it began with
    run.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _finish(run: TrainingSetup, output: Path) -> RunSummary:
    trainer = run.trainer
    if run.check is None:
        trainer.save_best()
    elif trainer.last_check_step != trainer.state.global_step:
        trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    verify_adapter(output / BEST, adapter_shapes(trainer.adapter_model))
    base = broadcast_first(_logged(output, "base"))
    base_cer = None if base is None else float(base["cer"])
    best_cer = None if trainer.best_cer is None else float(trainer.best_cer)
    run.log.write("finished", trainer.state, best_cer=best_cer, base_cer=base_cer)
    logged = read_events(output / LOG_FILE, "log")
    alike = [each["frac_reward_zero_std"] == 1 for each in logged if "frac_reward_zero_std" in each]
    return RunSummary(
        output,
        trainer.state.global_step,
        best_cer,
        base_cer,
        max_steps=trainer.state.max_steps,
        earned_alike=bool(alike) and all(alike),
    )


def _checkpoint(output: Path, run: TrainingSetup) -> Path | None:
    found, faults = broadcast_first(newest_valid(output / CHECKPOINTS))
    for fault in faults:
        run.log.write("checkpoint_refused", fault=fault)
    if found is None and faults:
        raise TrainingError(
            TrainingCode.CHECKPOINT_CORRUPT,
            f"no checkpoint of {output} is sound ({'; '.join(faults)})",
            "restore one from a copy, or start again with --overwrite"
            + ("" if validation_error(output / BEST) else f"; {output / BEST} is complete: copy it first"),
        )
    return found


def _logged(output: Path, event: str) -> dict[str, Any] | None:
    """The last event of a name in the run's log."""
    last = deque(read_events(output / LOG_FILE, event), maxlen=1)
    return last[0] if last else None
