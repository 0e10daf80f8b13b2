"""Adapters as hooks on a model's own modules, for plain torch: prefill on a CPU, and decoders that are not packed.

The hooks exist only while a batch with adapters runs, so batches of the base model cost nothing extra. Used by the
engine's single thread.

Shape letters: T tokens, H inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from service.engine.kernels.reference.decoder import mixture_lora
from service.engine.lora.bank import AdapterBank, ExpertLowRank
from service.engine.lora.low_rank import SlotMatrices, rows_by_slot
from shared.deepseek_ocr.decoder import Decoder
from shared.deepseek_ocr.moe import Experts, MixtureOfExperts


@contextmanager
def adapted(decoder: Decoder, bank: AdapterBank, slots_T: Tensor) -> Iterator[None]:
    """Make a decoder's layers add the adapters' sums within a block.

    Args:
        decoder: Its layers' modules take tokens `[..., H]`.
        bank: Made without `splits_shared`.
        slots_T: Slot of each token, in the order in which the modules take the tokens; -1: base model alone.
    """
    groups = rows_by_slot(slots_T.tolist(), slots_T.device)
    layers: list[Any] = list(decoder.layers)
    with ExitStack() as stack:
        for group in groups:
            for layer, matrices in zip(layers, bank.compact(group.slot), strict=True):
                for module, name, part in _projections(layer):
                    if name in matrices:
                        hook = partial(_add, matrices=matrices[name].part(part), rows=group.rows)
                        stack.callback(module.register_forward_hook(hook).remove)
        if any(group.slot in bank.expert_slots for group in groups):
            for index, layer in enumerate(layers):
                low = bank.experts(index)
                if low:
                    hook = partial(_mix_again, low=low, slots_T=slots_T)
                    stack.callback(layer.mlp.experts.register_forward_hook(hook).remove)
        yield


def _projections(layer: Any) -> Iterator[tuple[nn.Module, str, int]]:
    """Modules that adapters may change, each with its group in the bank and its part of the group."""
    attention = layer.self_attn
    yield from ((attention.q_proj, "qkv", 0), (attention.k_proj, "qkv", 1), (attention.v_proj, "qkv", 2))
    yield attention.o_proj, "out", 0
    mlp = layer.mlp.shared_experts if isinstance(layer.mlp, MixtureOfExperts) else layer.mlp
    if mlp is not None:
        yield from ((mlp.gate_proj, "gate_up", 0), (mlp.up_proj, "gate_up", 1), (mlp.down_proj, "down", 0))


def _add(
    module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, matrices: SlotMatrices, rows: slice | Tensor
) -> None:
    out_TO = out.view(-1, out.shape[-1])
    matrices.add(inputs[0].reshape(len(out_TO), -1), out_TO, rows)


def _mix_again(
    module: Experts, inputs: tuple[Tensor, Tensor, Tensor], out_TH: Tensor, low: ExpertLowRank, slots_T: Tensor
) -> None:
    """Recompute the routed experts' output for tokens with adapters; the other tokens keep theirs."""
    rows = (slots_T >= 0).nonzero()[:, 0]
    x_TH, weights_TK, experts_TK = (tensor[rows] for tensor in inputs)
    mixed_TH = mixture_lora(x_TH, weights_TK, experts_TK, module.gate_up_proj, module.down_proj, low, slots_T[rows])
    out_TH.index_copy_(0, rows, mixed_TH)
