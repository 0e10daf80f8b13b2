"""transformers' Trainer on pages: features from the cache, loss on the answers' tokens.

Owns what differs from the library's loop. Gradient accumulation, schedules, several GPUs, logging and the order of
everything remain the library's.

Shape letters: B samples, L tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler

from trainer.training.callbacks import EpochCallback
from trainer.training.checked import CheckedTrainer, RunParts, base_of
from trainer.training.collator import INDICES, KEPT
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.graphs import GraphedLoss
from trainer.training.order import LengthGroupedOrder

_VIEW_KEYS = ("global_views_BHWC", "tiles_THWC", "tile_grids_B2")


class PageTrainer(CheckedTrainer):
    """The loop; one per run."""

    def __init__(self, model: PeftModel, parts: RunParts, **kwargs: Any) -> None:
        self._parts = parts
        super().__init__(
            model=model,
            # Numbers of samples: the feature cache's keys.
            train_dataset=range(len(parts.samples)),
            # Unused, but the library requires one: `evaluate` reads pages instead of computing losses.
            eval_dataset=range(len(parts.samples)) if parts.check else None,
            data_collator=self._collate,
            **kwargs,
        )
        self._pieces = 1
        self._graphed: GraphedLoss | None = None
        # The model is called with `num_items_in_batch`, which its signature hides behind PEFT's.
        self.model_accepts_loss_kwargs = True

    @property
    def pieces(self) -> int:
        """Parts that a batch is cut into since memory ran out."""
        return self._pieces

    def _collate(self, rows: Sequence[int]) -> dict[str, Any]:
        return self._parts.collator([(row, self._parts.samples[row]) for row in rows])

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        del train_dataset
        lengths = [sample.num_tokens for sample in self._parts.samples]
        each = self.args.train_batch_size, self.args.gradient_accumulation_steps, self.args.world_size
        order = LengthGroupedOrder(lengths, self.args.seed, *each)
        self.add_callback(EpochCallback(order))
        return order

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a batch forward and backward; after running out of memory, in twice as many parts from then on.

        Args:
            model: the model, possibly wrapped for several devices.
            inputs: what the collator made.
            num_items_in_batch: labels of the whole update, which the loss is divided by.

        Returns:
            The batch's share of the update's loss.

        Raises:
            TrainingError: a single sample does not fit, or processes of a distributed run would split it differently.
        """
        model.train()
        before = {name: each.grad.clone() for name, each in _trained(model) if each.grad is not None}
        while True:
            try:
                return self._in_pieces(model, inputs, num_items_in_batch)
            except torch.OutOfMemoryError as error:
                if self._pieces >= len(inputs[INDICES]) or self.args.world_size > 1:
                    raise _out_of_memory(len(inputs[INDICES]), self.args.world_size) from error
            # Undo what the failed attempt has added, so that the update is exact.
            for name, each in _trained(model):
                each.grad = before.get(name)
            self._pieces *= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.log({"batch_pieces": float(self._pieces)})

    def _in_pieces(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> Tensor:
        rows = inputs[INDICES].tolist()
        if self._pieces == 1:
            batches = [inputs]
        else:
            size = -(-len(rows) // self._pieces)
            batches = [self._collate(rows[start : start + size]) for start in range(0, len(rows), size)]
        total = torch.zeros((), device=self.args.device)
        for batch in batches:
            prepared = self._prepare_inputs(batch)
            if self._parts.is_graphed:
                total += self._replayed(model, prepared, num_items)
                continue
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, prepared, num_items_in_batch=num_items)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _replayed(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> Tensor:
        """Forward and backward of a batch as a CUDA graph; waiting for features happens before it."""
        if self._graphed is None:

            def loss_of(batch: Mapping[str, Tensor]) -> Tensor:
                with self.compute_loss_context_manager():
                    kept = batch["labels"].shape[1]
                    loss: Tensor = model(**batch, logits_to_keep=kept, loss_alone=True, use_cache=False)["loss"]
                    return loss

            self._graphed = GraphedLoss(loss_of, [each for _, each in _trained(model)])
        labels_BL = inputs["labels"][:, -inputs[KEPT] :]
        batch = {"inputs_embeds": self._embedded(model, inputs).detach(), "labels": labels_BL}
        if num_items is not None:
            batch["num_items_in_batch"] = torch.as_tensor(num_items, device=labels_BL.device)
        return self._graphed.backward(batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross entropy of the answers' tokens, divided by the labels of the whole update (`num_items_in_batch`)."""
        labels = inputs["labels"]
        arguments: dict[str, Any] = {}
        if self._parts.keeps_logits:
            # Logits of image and prompt are most of a step's memory with a large vocabulary, and are not used.
            # Those of answers are not needed all at once either.
            arguments |= {"logits_to_keep": inputs[KEPT], "loss_alone": not return_outputs}
            labels = labels[:, -inputs[KEPT] :]
        if self._parts.encoder is not None:
            arguments["inputs_embeds"] = self._embedded(model, inputs)
        else:
            arguments["input_ids"] = inputs["input_ids"]
            arguments |= {key: inputs[key] for key in _VIEW_KEYS}
        output = model(**arguments, labels=labels, use_cache=False, num_items_in_batch=num_items_in_batch)
        loss = output["loss"]
        if num_items_in_batch is not None and self.args.world_size > 1:
            loss = loss * self.args.world_size  # gradients are averaged over processes
        return (loss, output) if return_outputs else loss

    def _embedded(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Tokens of a batch `[B, L, D]`, cached features in their places."""
        encoder = self._parts.encoder
        assert encoder is not None, "the encoder is trained"
        ids_BL = inputs["input_ids"]
        features = encoder.features(inputs[INDICES].tolist(), ids_BL.device)
        embeds_BLD: Tensor = base_of(self.accelerator.unwrap_model(model)).embed_inputs(ids_BL, features)
        return embeds_BLD


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _out_of_memory(batch_size: int, world_size: int) -> TrainingError:
    if world_size > 1:
        remedy = "halve --batch-size and double --gradient-accumulation-steps: several processes cannot do so alone"
        return TrainingError(TrainingCode.OUT_OF_MEMORY, "the device's memory does not hold a batch", remedy)
    return TrainingError(
        TrainingCode.OUT_OF_MEMORY,
        f"the device's memory does not hold one sample (batch size {batch_size}, cut into single samples)",
        "add --gradient-checkpointing, lower --max-length, or take --preset low-vram",
    )
