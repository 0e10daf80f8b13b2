"""Adapters on a model's own modules, for work that plain torch does: prefill on a CPU, decoders that are not packed.

Owns the hooks, which are there only while a batch with adapters runs, so the base alone pays nothing. Used by the
engine's single thread.

Shape letters: T tokens, H inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from service.engine.kernels.reference import lora_add
from service.engine.lora import AdapterBank, LowRank
from shared.deepseek_ocr.moe import MixtureOfExperts


@contextmanager
def adapted(model: Any, bank: AdapterBank, slots_T: Tensor) -> Iterator[None]:
    """Let a model's decoder layers add adapters' products.

    Args:
        model: With the decoder's layers; its modules take tokens `[..., H]`.
        bank: Made without `splits_shared`.
        slots_T: Each token's slot, in the order in which the modules take the tokens; -1: none.
    """
    with ExitStack() as stack:
        for layer, groups in zip(model.model.layers, bank.layers, strict=True):
            attention = layer.self_attn
            projections = [(attention.q_proj, "qkv", 0), (attention.k_proj, "qkv", 1), (attention.v_proj, "qkv", 2)]
            projections.append((attention.o_proj, "out", 0))
            mlp = layer.mlp.shared_experts if isinstance(layer.mlp, MixtureOfExperts) else layer.mlp
            if mlp is not None:
                projections += [(mlp.gate_proj, "gate_up", 0), (mlp.up_proj, "gate_up", 1), (mlp.down_proj, "down", 0)]
            for module, name, part in projections:
                hook = partial(_add, group=groups[name].part(part), slots_T=slots_T)
                handle = module.register_forward_hook(hook)
                stack.callback(handle.remove)
        yield


def _add(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, group: LowRank, slots_T: Tensor) -> None:
    out_TO = out.view(-1, out.shape[-1])
    lora_add(inputs[0].reshape(len(out_TO), -1), out_TO, group.A_SQH, group.B_SOR, slots_T, group.part_width)
