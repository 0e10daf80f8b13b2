"""What a run says and hears while it goes on: a line of JSON for every event, a caller's function, SIGTERM.

Knows transformers' callbacks, nothing of models or data.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.training.distributed import any_rank

Event = Mapping[str, Any]
ProgressCallback = Callable[[Event], None]
"""Gets every event: `event` (`start`, `log`, `evaluate`, `save`, `end` and others), `step`, `max_steps`, figures."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DIGITS = 8


class StopRequest:
    """Whether somebody has asked the run to end."""

    def __init__(self) -> None:
        self.is_set = False
        self.signal_number = 0

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take SIGTERM and SIGINT as requests; a second one ends the process at once, as without this."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may say how signals are answered
            return
        before = {number: signal.signal(number, self._hear) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, answer in before.items():
                signal.signal(number, answer)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.is_set, self.signal_number = True, number


class StopCallback(TrainerCallback):
    """Ends the run after the step in hand, with a checkpoint."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Look whether to stop."""
        del state
        # A signal reaches processes between different updates; all have to stop after the same one.
        self._request.is_set = any_rank(self._request.is_set, args.device)
        if self._request.is_set:
            control.should_save = control.should_training_stop = True
        return control


class EarlyStop(EarlyStoppingCallback):
    """The library's, without its advice to load the best weights at the end: `best/` holds them."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Nothing to say."""


class EventLog(TrainerCallback):
    """Writes `log.jsonl`, moves a bar, tells the caller."""

    def __init__(
        self, path: Path, stream: TextIO, caller: ProgressCallback | None = None, *, is_main: bool = True
    ) -> None:
        """Start a log, or go on with one.

        Args:
            path: the file.
            stream: where the bar is shown.
            caller: gets every event too.
            is_main: False in further processes of a run, which stay silent.
        """
        self._is_main = is_main
        self._path, self._stream, self._caller = path, stream, caller
        self._bar: tqdm[Any] | None = None
        self._start_s = time.monotonic()

    def write(self, event: str, state: TrainerState | None = None, **figures: Any) -> None:
        """Note an event.

        Args:
            event: its name.
            state: of the loop.
            **figures: what belongs to it.
        """
        if not self._is_main:
            return
        record: dict[str, Any] = {"event": event, "seconds": round(time.monotonic() - self._start_s, 2)}
        if state is not None:
            record |= {"step": state.global_step, "max_steps": state.max_steps, "epoch": round(state.epoch or 0, 4)}
        record |= {name: _short(value) for name, value in figures.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._caller is not None:
            self._caller(record)

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
        """Note losses; error rates have an event of their own."""
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
        """Note error rates."""
        del args, control
        figures = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        self.write("evaluate", state, **figures)
        if self._is_main:
            tqdm.write(
                f"step {state.global_step}: CER {100 * figures.get('cer', float('nan')):.2f} %", file=self._stream
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note checkpoints."""
        del args, control
        self.write("save", state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the bar away."""
        del args, control
        if self._bar is not None:
            self._bar.close()
        self.write("end", state)


def _short(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value
