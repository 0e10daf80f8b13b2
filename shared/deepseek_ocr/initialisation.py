"""First values of weights that are trained from nothing. Knows the modules, nothing of loading or training.

Layers that only transformers' own rule concerns (linear layers, embeddings, norms) are left to it.
"""

from __future__ import annotations

from torch import nn
from transformers import initialization as init

from shared.deepseek_ocr.clip import ClipEmbeddings
from shared.deepseek_ocr.moe import Experts, Gate
from shared.deepseek_ocr.sam import ChannelNorm, SamAttention, SamEncoder

_OWN_PARAMETERS: dict[type[nn.Module], tuple[str, ...]] = {
    SamEncoder: ("pos_embed",),
    SamAttention: ("rel_pos_h", "rel_pos_w"),
    ClipEmbeddings: ("class_embedding",),
    Gate: ("weight",),
    Experts: ("gate_up_proj", "down_proj"),
}
"""Parameters that a module holds itself, not through a layer of torch's."""


def initialise(module: nn.Module, std: float) -> bool:
    """Fill in a module's own parameters; called for each module of a model, children first.

    Args:
        module: any module.
        std: deviation of weights.

    Returns:
        Whether the module is one that this file knows; the others are transformers' to fill in.
    """
    if isinstance(module, nn.Conv2d):
        # Stacks of convolutions without norms between them: unit gain, whatever the kernel's size.
        init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, ChannelNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif type(module) in _OWN_PARAMETERS:
        for name in _OWN_PARAMETERS[type(module)]:
            init.normal_(module.get_parameter(name), std=std)
    elif hasattr(module, "image_newline") and hasattr(module, "view_seperator"):
        init.normal_(module.get_parameter("image_newline"), std=std)
        init.normal_(module.get_parameter("view_seperator"), std=std)
    else:
        return False
    return True
