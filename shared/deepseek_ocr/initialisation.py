"""Initial values of weights for training from scratch. Knows the modules, but nothing of loading or training.

Linear layers, embeddings and norms are left to transformers' own initialisation.
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
"""Parameters that belong to a module itself, not to one of torch's layers in it."""


def initialise(module: nn.Module, std: float) -> bool:
    """Initialise a module's own parameters; called for each module of a model, children first.

    Args:
        module: any module of a model.
        std: standard deviation of weights.

    Returns:
        False if the module is left to transformers.
    """
    if isinstance(module, nn.Conv2d):
        # Convolutions are stacked without norms between them, so each has unit gain, whatever its kernel's size.
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
