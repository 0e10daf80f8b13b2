"""Libraries for canvases that this machine can build and run, and a model of their shapes."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import torch

from service.engine.cpu import canvas_library, step_library
from service.engine.cpu.step_library import CANVASES, Library
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.quantisation import dequantise_rows, quantise_rows
from tests.unit.service.engine.cpu.runnable_libraries import runnable
from tests.unit.service.engine.tiny import tiny_config

SIDE_PX = 320
RUNNABLE = runnable(CANVASES)


def built(library: Library, folder: Path) -> ctypes.CDLL:
    """Build and load one library."""
    library = replace(library, folder=folder)
    step_library.build(library)
    return canvas_library.load([library])


def rounding_limit(library: ctypes.CDLL) -> float:
    """Largest relative error that the rounding of what is multiplied may make."""
    return 0.03 if library.canvases_coarse() == 4 else 0.002


def canvas_model(**changes: dict[str, object]) -> DeepseekOcrForConditionalGeneration:
    """A small model of shapes that the libraries take, whose weights are levels.

    Args:
        changes: Of parts of its configuration, by their names.
    """
    torch.manual_seed(1)
    config = tiny_config()
    sam: dict[str, object] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "image_size": SIDE_PX,
        "window_size": 10,
        "global_layers": (1,),
        "stem_channels": (32, 32, 64, 64),
        "neck_channels": 32,
        "downsample_channels": (64, 128),
    }
    clip: dict[str, object] = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 160,
        "image_size": 140,
    }
    text: dict[str, object] = {"hidden_size": 128, "moe_intermediate_size": 32}
    for name, values in {"sam_config": sam, "clip_config": clip, "text_config": text}.items():
        for key, value in {**values, **changes.get(name, {})}.items():
            setattr(getattr(config, name), key, value)
    model = DeepseekOcrForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "embedding", "embed", "rel_pos_h", "rel_pos_w")):
                parameter.normal_(std=0.3)
            if parameter.ndim >= 2 and not name.endswith(("pos_embed", "gate.weight")):
                # Of stacked experts each has rows of its own, as in a checkpoint.
                rows = parameter.flatten(0, 1) if parameter.ndim == 3 else parameter.flatten(1)
                parameter.copy_(dequantise_rows(*quantise_rows(rows)).view_as(parameter))
    return model
