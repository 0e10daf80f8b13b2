"""A model's linear layers and experts with weights laid out for oneDNN, for encoders and prefill on a CPU.

Owns the layers' exchange. Same result as the model's own layers in float32, up to rounding; steps of one token have
`packed_weights`. Used by the engine's single thread.

torch multiplies float32 by MKL, which does not use all of every processor: on one core of an EPYC with AVX-512 a
product of 1600 x 256 and 256 x 1024 runs at 97 GFLOP/s by MKL and at 215 by oneDNN (torch 2.13.0).

Shape letters: T tokens, H hidden width, K experts per token, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.deepseek_ocr.moe import Experts, expert_by_expert

ModelT = TypeVar("ModelT", bound=nn.Module)
MAX_WEIGHTS = 500_000_000
"""Above this, the copy costs more memory than the speed is worth."""
MIN_ROWS = 16
"""Fewer rows are bound by reading weights."""


class PackedWeights:
    """A second copy of weights, in oneDNN's layout.

    Args:
        weight_OI: float32 or bfloat16, on a CPU.

    Raises:
        AttributeError: This torch has no such product.
        RuntimeError: This torch, or this processor, has none.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._multiply: Any = torch.ops.mkldnn._linear_pointwise
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), None)
        self.product(weight_OI.new_zeros(1, weight_OI.shape[1]))

    def product(self, x: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """`x @ weight.T`, with a bias if there is one."""
        return cast("Tensor", self._multiply(x, self._packed, bias_O, "none", [], ""))


class PackedLinear(nn.Linear):
    """A linear layer that multiplies many rows by packed weights.

    Invariant: the packed weights are those of the start; they do not change afterwards.

    Args:
        linear: Takes over its parameters.
    """

    def __init__(self, linear: nn.Linear) -> None:
        packed = PackedWeights(linear.weight)
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self._packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """Multiply rows by the weights."""
        if not _is_worth_it(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        return self._packed.product(x, self.bias)


class PackedExperts(Experts):
    """Routed experts that multiply many rows by packed weights.

    Invariant: as `PackedLinear`.

    Args:
        experts: Takes over their parameters.
    """

    def __init__(self, experts: Experts) -> None:
        stacks = (experts.gate_up_proj, experts.down_proj)
        packed = [(PackedWeights(gate_up), PackedWeights(down)) for gate_up, down in zip(*stacks, strict=True)]
        nn.Module.__init__(self)
        self.implementation = experts.implementation
        self.gate_up_proj, self.down_proj = stacks
        self.train(experts.training)
        self._packed = packed

    def forward(self, x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """See `Experts`."""
        if self.implementation != "grouped" or not _is_worth_it(x_TH, self.gate_up_proj):
            return super().forward(x_TH, weights_TK, experts_TK)
        return expert_by_expert(x_TH, weights_TK, experts_TK, self._run_expert)

    def _run_expert(self, expert: int, x_TH: Tensor) -> Tensor:
        gate_up, down = self._packed[expert]
        gate, up = gate_up.product(x_TH).chunk(2, dim=-1)
        return down.product(F.silu(gate) * up)


@torch.no_grad()
def with_packed_layers(model: ModelT) -> ModelT:
    """A model's twin, which has the same parameters and packed layers.

    Args:
        model: In evaluation mode; stays as it is, and its weights do not change afterwards.

    Returns:
        The twin, or the model itself: if its weights are not all float32 or all bfloat16, not on a CPU or more than
        `MAX_WEIGHTS`, or if there is no such product here.
    """
    weights = [weight for _, _, layer in _layers(model) for weight in layer.parameters()]
    is_small = sum(weight.numel() for weight in weights) <= MAX_WEIGHTS
    types = {weight.dtype for weight in weights}
    is_known = types in ({torch.float32}, {torch.bfloat16})
    if not is_small or not is_known or any(weight.device.type != "cpu" for weight in weights):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    try:
        for parent, name, layer in list(_layers(twin)):
            packed = PackedExperts(layer) if isinstance(layer, Experts) else PackedLinear(layer)
            parent.register_module(name, packed)
    except (AttributeError, RuntimeError):
        return model
    return twin


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Experts]]:
    """Layers that can be exchanged, with the modules that hold them."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear or type(child) is Experts:
                yield parent, name, child


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    is_many = x.numel() >= MIN_ROWS * x.shape[-1]
    return is_many and x.dtype == weight.dtype and not torch.is_grad_enabled()
