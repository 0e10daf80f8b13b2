"""A sweep from start to end: Optuna chooses values, trials train with them, the budget ends it.

`<folder>/` holds `study.jsonl` (Optuna's journal, which a sweep resumes from), `trials/NNNN/` (a training run each) and
`sweep.json` (the record). Optuna samples and prunes; this module owns the order, the budget and what is kept. The main
thread starts one thread a job; each waits for a process.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TextIO

from trainer.evaluation.provenance import current_date, machine, package_version, package_versions, source_commit
from trainer.report.sweep import SWEEP_FILE
from trainer.sweeping.space import Choices, Dimension, options_of, size_of
from trainer.sweeping.trial import End, TrialResult, run_trial
from trainer.training.callbacks import StopRequest
from trainer.training.errors import TrainingCode, TrainingError, TrainingStopped
from trainer.training.options import TrainingOptions

if TYPE_CHECKING:
    import optuna

STUDY_FILE: Final = "study.jsonl"
RECORD_FILE: Final = SWEEP_FILE
TRIALS: Final = "trials"
STARTUP_TRIALS: Final = 4
"""Trials whose checks are compared with before the first one is pruned."""
FAILED: Final = "fail"
"""Optuna's name of a failed trial's state, in lower case."""
_UNCOMPARED: Final = frozenset({"output_dir", "device"})


@dataclass(frozen=True, slots=True)
class Budget:
    """What a sweep may take: trials in all, seconds of training in all (None: any), and trials at once."""

    trials: int
    seconds: float | None
    devices: tuple[str | None, ...]


@dataclass(slots=True)
class Sweep:
    """A sweep in a folder."""

    folder: Path
    fixed: TrainingOptions
    space: tuple[Dimension, ...]
    budget: Budget
    stream: TextIO
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _request: StopRequest = field(default_factory=StopRequest)
    _running_since: dict[int, float] = field(default_factory=dict)
    _failed_before: int = 0
    """Trials that failed in earlier runs of the command; not counted, as their values are tried again."""

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Run trials until the budget is used up.

        Args:
            resume: go on with the sweep in the folder.

        Returns:
            The record, also written to `sweep.json`.

        Raises:
            TrainingError: Optuna is missing, the folder holds another sweep, or every trial failed.
            TrainingStopped: it was asked to stop, and can be resumed.
        """
        self._settle(resume=resume)
        study = self._open()
        waiting: SimpleQueue[str | None] = SimpleQueue()
        for device in self.budget.devices:
            waiting.put(device)
        with self._request.listening(), ThreadPoolExecutor(len(self.budget.devices)) as pool:
            jobs = [pool.submit(self._work, study, waiting.get()) for _ in self.budget.devices]
            try:
                for job in jobs:
                    job.result()
            finally:
                self._stopping.set()  # after an error the other trials stop with a checkpoint
        record = self._record(study)
        if self._request.is_set:
            raise TrainingStopped(
                "the sweep was stopped; the same command with --resume continues, interrupted trials included",
                self._request.signal_number or signal.SIGTERM,
            )
        trials = record["trials"]
        if trials and all(each["state"] == FAILED for each in trials):
            raise TrainingError(
                TrainingCode.STEP_FAILED,
                f"every trial failed: {trials[-1]['message']}",
                "correct that and repeat the command with --resume",
            )
        return record

    def _work(self, study: optuna.Study, device: str | None) -> None:
        while not self._is_over():
            with self._lock:
                trial = self._next(study)
                if trial is None:
                    return
                self._running_since[trial.number] = time.monotonic()
            try:
                result = self._train(study, trial, device)
                with self._lock:  # one step: between two, another job would take the trial for an interrupted one
                    self._keep(study, trial, result)
                    self._running_since.pop(trial.number)
            except BaseException:
                self._stopping.set()
                raise

    def _next(self, study: optuna.Study) -> optuna.Trial | None:
        """An interrupted trial, or else a new one; None if there have been enough."""
        import optuna

        running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        left = next((each for each in running if each.number not in self._running_since), None)
        if left is None and len(started(study)) >= self._most_trials():
            return None
        trial = optuna.Trial(study, left._trial_id) if left is not None else study.ask()
        for dimension in self.space:
            suggest(trial, dimension)
        return trial

    def _train(self, study: optuna.Study, trial: optuna.Trial, device: str | None) -> TrialResult:
        folder = self.folder / TRIALS / f"{trial.number:04d}"
        options = replace(options_of(self.fixed, trial.params), output_dir=folder)
        # A trial that goes on has the checks from before in its log.
        reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def report(percent: int, cer: float) -> bool:
            with self._lock:
                if percent not in reported:
                    reported.add(percent)
                    trial.report(cer, percent)
                return trial.should_prune()

        return run_trial(options, device, report, self._is_over)

    def _keep(self, study: optuna.Study, trial: optuna.Trial, result: TrialResult) -> None:
        import optuna

        trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + result.seconds)
        trial.set_user_attr("cer", result.cer)
        trial.set_user_attr("message", result.message)
        states = {End.PRUNED: optuna.trial.TrialState.PRUNED, End.FAILED: optuna.trial.TrialState.FAIL}
        if result.end is End.COMPLETE:
            study.tell(trial, result.cer)
        elif result.end in states:
            study.tell(trial, state=states[result.end])
        values = ", ".join(f"{name.replace('_', '-')} {_short(value)}" for name, value in trial.params.items())
        cer = "" if result.cer is None else f", CER {result.cer:.2%}"
        said = f"trial {trial.number + 1} of {self._most_trials()}: {values}: {result.end}{cer} {result.message}"
        self.stream.write(said.rstrip() + "\n")
        self.stream.flush()
        self._record(study)

    def _most_trials(self) -> int:
        """The budget's number, or fewer if there are not so many combinations, and those that failed earlier."""
        size = size_of(self.space)
        return self._failed_before + (self.budget.trials if size is None else min(self.budget.trials, size))

    def _is_over(self) -> bool:
        if self._stopping.is_set() or self._request.is_set:
            return True
        if self.budget.seconds is None:
            return False
        now = time.monotonic()
        return self._spent_s + sum(now - since for since in list(self._running_since.values())) >= self.budget.seconds

    @property
    def _spent_s(self) -> float:
        record = self.folder / RECORD_FILE
        trials = json.loads(record.read_text(encoding="utf-8"))["trials"] if record.is_file() else []
        return float(sum(each["seconds"] for each in trials))

    def _open(self) -> optuna.Study:
        if importlib.util.find_spec("optuna") is None:
            raise TrainingError(
                TrainingCode.PACKAGE_MISSING,
                "a sweep needs the package optuna",
                "install the extra: pip install 'deepsynth-ocr[trainer-sweep]'",
            )
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / STUDY_FILE)))
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
        study = optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True, pruner=pruner)
        # Another seed after a resume: the same one would repeat the first trials.
        seed = self.fixed.seed + len(started(study))
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=len(self.budget.devices) > 1)
        self._retry_failed(study)
        size = size_of(self.space)
        if size is not None and size <= self.budget.trials:
            # Every combination once; a sampler would repeat some.
            lists = [[(each.name, value) for value in each.values] for each in self.space if isinstance(each, Choices)]
            for values in product(*lists):
                study.enqueue_trial(dict(values), skip_if_exists=True)
        return study

    def _retry_failed(self, study: optuna.Study) -> None:
        """Put the values of trials that failed in line again: what stopped them, such as a full disk, may be mended."""
        from optuna.trial import TrialState

        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        self._failed_before = len(failed)
        others = [each for each in study.get_trials(deepcopy=False) if each.state is not TrialState.FAIL]
        tried = [each.system_attrs.get("fixed_params", each.params) for each in others]
        for trial in failed:
            if trial.params not in tried:
                tried.append(trial.params)
                study.enqueue_trial(trial.params)

    def _settle(self, *, resume: bool) -> None:
        """Check that the folder is new, or holds this sweep."""
        path = self.folder / RECORD_FILE
        if not path.is_file():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise TrainingError(
                    TrainingCode.OUTPUT_EXISTS, f"{self.folder} holds something else", "name another --out"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, self._head() | {"trials": []})
            return
        if not resume:
            raise TrainingError(
                TrainingCode.OUTPUT_EXISTS,
                f"{self.folder} holds a sweep already",
                "continue it with --resume, or name another --out",
            )
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(self._head()))
        changed = ["what is searched"] if before["space"] != now["space"] else []
        changed += [
            name.replace("_", "-")
            for name, value in now["options"].items()
            if name not in _UNCOMPARED and before["options"].get(name) != value
        ]
        if changed:
            raise TrainingError(
                TrainingCode.RESUME_MISMATCH,
                f"{self.folder} holds a sweep with another {', '.join(changed)}",
                "repeat what it was started with, or name another --out",
            )

    def _head(self) -> dict[str, Any]:
        return {
            "format": 1,
            "date": current_date(),
            "commit": source_commit(),
            "machine": machine(),
            "versions": package_versions() | {"optuna": package_version("optuna")},
            "options": self.fixed.as_json(),
            "space": [asdict(each) for each in self.space],
            "budget": {"trials": self.budget.trials, "seconds": self.budget.seconds},
        }

    def _record(self, study: optuna.Study) -> dict[str, Any]:
        trials = [
            {
                "number": each.number,
                "state": each.state.name.lower() if each.state.is_finished() else End.INTERRUPTED.value,
                "cer": each.user_attrs.get("cer"),
                "seconds": round(each.user_attrs.get("seconds", 0.0), 1),
                "values": dict(each.params),
                "message": each.user_attrs.get("message", ""),
            }
            for each in started(study)
        ]
        record = self._head() | {"trials": trials}
        _write(self.folder / RECORD_FILE, record)
        return record


def started(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The study's trials, without combinations that still wait."""
    import optuna

    waiting = optuna.trial.TrialState.WAITING
    return [each for each in study.get_trials(deepcopy=False) if each.state is not waiting]


def suggest(trial: optuna.Trial, dimension: Dimension) -> None:
    """Let the sampler choose a value of a dimension."""
    if isinstance(dimension, Choices):
        trial.suggest_categorical(dimension.name, dimension.values)
    elif dimension.is_whole:
        trial.suggest_int(dimension.name, int(dimension.low), int(dimension.high), log=dimension.is_log)
    else:
        trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.is_log)


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial with the lowest error rate among those that were trained to their end; None if there is none."""
    complete = [each for each in trials if each["state"] == End.COMPLETE.value and each["cer"] is not None]
    return min(complete, key=lambda each: each["cer"], default=None)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
