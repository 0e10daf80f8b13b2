"""Shapes of adapters' matrices: each layer's groups of projections, their dimensions and their memory.

A group consists of projections that share an input and are computed as one product: query, key and value; out; gate and
up; down. Gate, up and down are those of the dense MLP or the shared experts. Routed experts have two more groups, with
a dimension E, if they are enabled. Only numbers; `bank` has the matrices.

Shape letters: P parts of a group, G blocks, W outputs of a part in a block, O = G * P * W outputs, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.lora.files import ROUTED
from shared.deepseek_ocr.configuration import TextConfig


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Dimensions of a group's matrices in one layer."""

    inputs: int
    parts: int
    """Projections side by side: 3 for query, key and value."""
    part_width: int
    """Outputs of a part in one block."""
    blocks: int = 1
    """How often the parts repeat: gates and ups of shared experts may be stored expert by expert."""
    experts: int = 0
    """Number of routed experts, each with its own matrices; 0 for the other groups."""

    @property
    def outputs(self) -> int:
        """O, of all parts and blocks."""
        return self.blocks * self.parts * self.part_width

    def num_values(self, max_rank: int) -> int:
        """Size of one slot's matrices, in numbers."""
        return max(self.experts, 1) * max_rank * (self.parts * self.inputs + self.outputs)


def layer_shapes(
    text: TextConfig, layer: int, *, splits_shared: bool = False, has_experts: bool = False
) -> dict[str, GroupShape]:
    """Groups of a layer.

    Args:
        text: Dimensions of the base model's decoder.
        layer: Index from 0.
        splits_shared: Whether gates and ups of shared experts are stored expert by expert, as in `GpuDecoder`.
        has_experts: Whether to include the groups of routed experts.

    Returns:
        Shapes by group name.
    """
    hidden = text.hidden_size
    shapes = {"qkv": GroupShape(hidden, 3, hidden), "out": GroupShape(hidden, 1, hidden)}
    blocks = 1
    if layer < text.first_k_dense_replace:
        width = text.intermediate_size
    else:
        width = text.moe_intermediate_size * text.n_shared_experts
        blocks = text.n_shared_experts if splits_shared else 1
    if width:
        shapes |= {"gate_up": GroupShape(hidden, 2, width // blocks, blocks), "down": GroupShape(width, 1, hidden)}
    if has_experts and layer >= text.first_k_dense_replace:
        inner, experts = text.moe_intermediate_size, text.n_routed_experts
        shapes[ROUTED["gate_up"]] = GroupShape(hidden, 2, inner, experts=experts)
        shapes[ROUTED["down"]] = GroupShape(inner, 1, hidden, experts=experts)
    return shapes


def bank_bytes(text: TextConfig, *, num_slots: int, max_rank: int, value_bytes: int, has_experts: bool = False) -> int:
    """Memory of a bank, the sum over all layers and slots."""
    layers = range(text.num_hidden_layers)
    shapes = [shape for layer in layers for shape in layer_shapes(text, layer, has_experts=has_experts).values()]
    return num_slots * value_bytes * sum(shape.num_values(max_rank) for shape in shapes)
