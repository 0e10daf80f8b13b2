"""What every loop of a run does with its adapter: checks by reading, the best one kept, checkpoints that count.

A loop mixes `CheckedTrainer` with transformers' Trainer, or with a library's subclass of it. Knows no loss.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import Trainer

from trainer.tracing import span
from trainer.training.adapter import adapter_shapes, load_adapter, save_adapter
from trainer.training.checkpoints import CHECKPOINTS, PARTIAL, commit, prune, writing_to
from trainer.training.collator import Collator
from trainer.training.dataset import TrainingSet
from trainer.training.distributed import broadcast_first
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.features import CachedEncoder

BEST = "best"
STEP_FILE = "step.json"
"""In `best/`: after which update it was kept, and its error rate."""
Check = Callable[[nn.Module], dict[str, float]]
"""Reads held-out pages with the model in training; returns figures by name, including `cer`."""


@dataclass(frozen=True, slots=True)
class RunParts:
    """What the loop works with.

    Attributes:
        output: the run's folder.
        base_model: name of the base model.
        modules: whole names of adapted modules.
        samples: to train on.
        collator: makes batches.
        encoder: gives cached features; None where the encoder is trained.
        check: reads held-out pages; None where there are none.
        keep_checkpoints: newest ones that stay.
        keeps_logits: whether the model's forward takes `logits_to_keep` together with labels.
        is_graphed: whether forward and backward are recorded; needs an encoder, and a model that keeps logits.
    """

    output: Path
    base_model: str
    modules: tuple[str, ...]
    samples: TrainingSet
    collator: Collator
    encoder: CachedEncoder | None
    check: Check | None
    keep_checkpoints: int
    keeps_logits: bool = True
    is_graphed: bool = False


class CheckedTrainer(Trainer):
    """Checks and keeps adapters; a subclass sets `_parts` before anything else."""

    _parts: RunParts
    last_check_step = -1
    best_cer: float | None = None

    @property
    def adapter_model(self) -> PeftModel:
        """The model without its wrapper for several devices."""
        return cast("PeftModel", self.accelerator.unwrap_model(self.model_wrapped))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures; raises `TrainingError` if the loss is not finite."""
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                TrainingCode.LOSS_NOT_FINITE,
                f"the loss is {logs['loss']} before update {self.state.global_step}",
                "lower --learning-rate or raise --warmup-ratio, and start again with --overwrite",
            )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Read the held-out pages; keep the adapter that reads them best.

        Returns:
            Figures, each name behind `eval_`.
        """
        metrics = {f"eval_{name}": value for name, value in self.read_held_out().items()}
        self.last_check_step = self.state.global_step
        if self.best_cer is None:
            self.best_cer = self._kept_cer()
        if self.best_cer is None or metrics["eval_cer"] < self.best_cer:
            self.best_cer = metrics["eval_cer"]
            self.save_best()
        self.log(dict(metrics))  # a copy: a library's loop adds its own figures
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def read_held_out(self) -> dict[str, float]:
        """Figures of the model as it is; the same on every process."""
        figures: dict[str, float] = {}
        if self._parts.check is not None and self.args.should_save:
            with span("train.check") as checking:
                figures = self._parts.check(base_of(self.adapter_model))
                checking.set_attribute("deepsynth.cer", figures["cer"])
        return broadcast_first(figures)

    def _kept_cer(self) -> float | None:
        """Error rate of the adapter that a resumed run kept; None in a new one."""
        path = self._parts.output / BEST / STEP_FILE
        # The adapter that the run began with may have read better than any check that the state knows.
        kept = json.loads(path.read_text(encoding="utf-8")).get("cer") if path.is_file() else None
        return self.state.best_metric if kept is None else float(kept)

    def save_best(self) -> None:
        """Write the current adapter to `best/`."""
        if not self.args.should_save:
            return
        target = self._parts.output / BEST
        partial = target.with_name(f".{BEST}{PARTIAL}")
        model = self.adapter_model
        with writing_to(target):
            shutil.rmtree(partial, ignore_errors=True)
            save_adapter(model, partial, self._parts.base_model, self._parts.modules)
            (partial / STEP_FILE).write_text(
                json.dumps({"step": self.state.global_step, "cer": self.best_cer}), encoding="utf-8"
            )
            commit(partial, target, adapter_shapes(model))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter's two files, and none of the pickles that the library adds."""
        del state_dict
        save_adapter(self.adapter_model, Path(str(output_dir)), self._parts.base_model, self._parts.modules)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        load_adapter(self.adapter_model, Path(resume_from_checkpoint))

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return str(self._parts.output / CHECKPOINTS / PARTIAL)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint to a temporary folder, verify it and rename it."""
        folder = self._parts.output / CHECKPOINTS
        staging = folder / PARTIAL
        with writing_to(folder):
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if not self.args.should_save:
                return
            (written,) = staging.iterdir()
            commit(written, folder / f"step-{self.state.global_step}", adapter_shapes(self.adapter_model))
            shutil.rmtree(staging, ignore_errors=True)
            prune(folder, self._parts.keep_checkpoints)


def base_of(model: nn.Module) -> Any:
    """The base model inside, with its adapter: it reads pages."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
