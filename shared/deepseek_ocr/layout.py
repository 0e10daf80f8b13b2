"""The place of each tensor of a public checkpoint in our model.

Owns the only difference between the two: the public layout has one tensor per routed expert and projection, our model
has them stacked. Knows shapes and names, but neither files nor values.

Shape letters: E experts, I intermediate width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GATE_UP, DOWN = ".experts.gate_up_proj", ".experts.down_proj"

UNUSED_SUFFIXES = (
    # CLIP's own patch embedding and an index table: present in public files, but unused.
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_ids",
    "rotary_emb.inv_freq",
)


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of one of our parameters; all of it if `expert` is None."""

    parameter: str
    expert: int | None = None
    start: int = 0
    stop: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """View this slot of the parameter's tensor."""
        return tensor if self.expert is None else tensor[self.expert, self.start : self.stop]


def public_slots(shapes: Mapping[str, torch.Size]) -> dict[str, Slot]:
    """Map public keys to their places.

    Args:
        shapes: of our parameters, by name.

    Returns:
        A slot for each key of the public layout, except for unused keys.
    """
    slots: dict[str, Slot] = {}
    for name, shape in shapes.items():
        if name.endswith(GATE_UP):
            half = shape[1] // 2
            for expert in range(shape[0]):
                prefix = f"{name.removesuffix('gate_up_proj')}{expert}"
                slots[f"{prefix}.gate_proj.weight"] = Slot(name, expert, 0, half)
                slots[f"{prefix}.up_proj.weight"] = Slot(name, expert, half, None)
        elif name.endswith(DOWN):
            for expert in range(shape[0]):
                slots[f"{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = Slot(name, expert)
        else:
            slots[name] = Slot(name)
    return slots


def is_unused(key: str) -> bool:
    """Whether a public file may have this key although the model has no use for it."""
    return key.endswith(UNUSED_SUFFIXES)
