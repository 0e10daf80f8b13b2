"""What adapters' matrices look like: groups of projections of each layer, their dimensions and their memory.

A group is projections that share an input and are computed as one product: query, key and value; out; gate and up;
down. Gate, up and down are those of the dense MLP or of the shared experts; those of the routed experts are two groups
more, with a dimension E, and there only where they are asked for. Numbers alone; `lora` has the matrices.

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
    """How often the parts repeat: gates and ups of shared experts that stand expert by expert."""
    experts: int = 0
    """Routed ones, each with matrices of its own; 0: the group is not one of routed experts."""

    @property
    def outputs(self) -> int:
        """O."""
        return self.blocks * self.parts * self.part_width

    def num_values(self, max_rank: int) -> int:
        """Numbers of one slot's matrices."""
        return max(self.experts, 1) * max_rank * (self.parts * self.inputs + self.outputs)


def layer_shapes(
    text: TextConfig, layer: int, *, splits_shared: bool = False, has_experts: bool = False
) -> dict[str, GroupShape]:
    """Groups of a layer.

    Args:
        text: The decoder's dimensions.
        layer: Its index.
        splits_shared: Whether gates and ups of shared experts stand expert by expert, as `GpuDecoder` has them.
        has_experts: Whether there are groups of routed experts.

    Returns:
        Shapes by the groups' names.
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
    """Memory of a bank."""
    layers = range(text.num_hidden_layers)
    shapes = [shape for layer in layers for shape in layer_shapes(text, layer, has_experts=has_experts).values()]
    return num_slots * value_bytes * sum(shape.num_values(max_rank) for shape in shapes)
