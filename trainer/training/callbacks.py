"""Callbacks of a run: a JSON line for every event, a progress function, stopping on SIGTERM.

Knows transformers' callbacks, but no models and no data.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.training.distributed import any_rank
from trainer.training.order import LengthGroupedOrder

Event = Mapping[str, Any]
ProgressCallback = Callable[[Event], None]
"""Gets every event: `event` (`start`, `log`, `evaluate`, `save`, `end` and others), `step`, `max_steps`, figures."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DIGITS = 8


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.is_set = False
        self.signal_number = 0

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Treat SIGTERM and SIGINT as requests to stop; a second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set signal handlers
            return
        before = {number: signal.signal(number, self._hear) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, answer in before.items():
                signal.signal(number, answer)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            _say("ended at once; with --resume the same command continues from the newest checkpoint, if there is one")
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.is_set, self.signal_number = True, number
        _say("stopping after this update, with a checkpoint; the same signal again ends the run at once")


def _say(text: str) -> None:
    # Not through sys.stderr, which the signal may have interrupted in the middle of a line.
    os.write(2, f"\n{text}\n".encode())


class EpochCallback(TrainerCallback):
    """Tells the order of samples which epoch begins.

    transformers does so too, but in a resumed epoch of several processes it does not reach a sampler below its loader.
    """

    def __init__(self, order: LengthGroupedOrder) -> None:
        self._order = order

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch."""
        del args, control
        self._order.set_epoch(int(state.epoch or 0))


class StopCallback(TrainerCallback):
    """Ends the run after the current step, with a checkpoint."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Stop if asked to."""
        del state
        # Processes get a signal between different updates; all must stop after the same one.
        self._request.is_set = any_rank(self._request.is_set, args.device)
        if self._request.is_set:
            control.should_save = control.should_training_stop = True
        return control


class RunFacts(TrainerCallback):
    """Tells TensorBoard and Weights & Biases what a run is: data, adapter, and how the base model reads."""

    def __init__(self, facts: Mapping[str, Any], writer: Any | None, *, use_wandb: bool) -> None:
        """Take what is known before the first update.

        Args:
            facts: plain values by name, such as `data/name` or `adapter/rank`.
            writer: TensorBoard's, or None.
            use_wandb: whether the library logs to Weights & Biases, whose run then exists when training begins.
        """
        self._facts, self._writer, self._use_wandb = dict(facts), writer, use_wandb

    def add(self, name: str, value: Any) -> None:
        """Add a fact that became known later, such as the base model's error rate."""
        self._facts[name] = value

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write them: this comes after the library's own callbacks, which open the run."""
        del args, control
        if not state.is_world_process_zero:
            return
        if self._writer is not None:
            rows = "".join(f"| {name} | {value} |\n" for name, value in self._facts.items())
            self._writer.add_text("run", f"| | |\n|---|---|\n{rows}", state.global_step)
            for name, value in self._facts.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, state.global_step)
        if self._use_wandb:
            import wandb

            if wandb.run is not None:
                wandb.config.update(self._facts, allow_val_change=True)
                wandb.run.summary.update({name: each for name, each in self._facts.items() if isinstance(each, float)})


class EarlyStop(EarlyStoppingCallback):
    """The library's, without its advice to load the best weights at the end: they are in `best/`."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print nothing."""


class EventLog(TrainerCallback):
    """Writes `log.jsonl`, moves a progress bar, calls the progress function."""

    def __init__(
        self, path: Path, stream: TextIO, caller: ProgressCallback | None = None, *, is_main: bool = True
    ) -> None:
        """Open a log, or append to one.

        Args:
            path: the log file, one JSON object a line.
            stream: where the progress bar is shown.
            caller: gets every event too.
            is_main: False in the other processes of a distributed run, which log nothing.
        """
        self._is_main = is_main
        self._path, self._stream, self._caller = path, stream, caller
        self._bar: tqdm[Any] | None = None
        self._start_s = time.monotonic()
        if is_main and path.is_file() and not path.read_bytes().endswith(b"\n"):
            # A kill or a full disk has cut the last line; the next one begins a line of its own.
            with path.open("ab") as file:
                file.write(b"\n")

    def write(self, event: str, state: TrainerState | None = None, **figures: Any) -> None:
        """Log an event with its figures."""
        if not self._is_main:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record: dict[str, Any] = {"event": event, "time": now, "seconds": round(time.monotonic() - self._start_s, 2)}
        if state is not None:
            record |= {"step": state.global_step, "max_steps": state.max_steps, "epoch": round(state.epoch or 0, 4)}
        record |= {name: _short(value) for name, value in figures.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._caller is not None:
            self._caller(record)

    def say(self, text: str) -> None:
        """Tell a person at once what the log says, too."""
        if self._is_main:
            tqdm.write(text, file=self._stream)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        del args, control
        self.write("start", state)
        if not self._is_main:
            return
        every_s = 0.2 if self._stream.isatty() else 30.0
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", file=self._stream, mininterval=every_s
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        del args, control
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Log losses; error rates have their own event."""
        del args, control
        figures = {name: value for name, value in (logs or {}).items() if not name.startswith("eval_")}
        figures.pop("epoch", None)
        if figures and "train_runtime" not in figures:
            self.write("log", state, **figures)
            if self._bar is not None and "loss" in figures:
                self._bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Log error rates."""
        del args, control
        figures = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        self.write("evaluate", state, **figures)
        if self._is_main:
            tqdm.write(
                f"step {state.global_step}: CER {100 * figures.get('cer', float('nan')):.2f} %", file=self._stream
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log checkpoints."""
        del args, control
        self.write("save", state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        del args, control
        self.close()
        self.write("end", state)

    def close(self) -> None:
        """End the bar's line, so that what an error prints begins one of its own."""
        if self._bar is not None:
            self._bar.close()


def _short(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value
