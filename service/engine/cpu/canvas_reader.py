"""Compiled code that reads canvases up to their first tokens, on processors without tiles.

Used by the engine's single thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from service.engine.cpu.canvas_encoder import CanvasEncoder
from service.engine.cpu.canvas_library import load
from service.engine.cpu.canvas_prompts import PromptReader
from service.engine.cpu.loaded_library import NoLibraryError
from shared.deepseek_ocr.protocol import OcrModel


@dataclass(frozen=True, slots=True)
class CanvasReader:
    """Both encoders, and the decoder for prompts."""

    encoder: CanvasEncoder
    prompts: PromptReader


def canvas_reader(model: OcrModel, max_tokens: int) -> CanvasReader:
    """Copy a model's weights for the library.

    Args:
        model: In evaluation mode; later changes of its weights do not reach the copy.
        max_tokens: Positions that may occur.

    Returns:
        The copy.

    Raises:
        NoLibraryError: There is no library, or it does not take such a model; says why.
    """
    if not isinstance(model, nn.Module):
        raise NoLibraryError("other shapes")
    if any(each.device.type != "cpu" or each.dtype != torch.float32 for each in model.parameters()):
        raise NoLibraryError("weights are not float32")
    library = load()
    return CanvasReader(CanvasEncoder(library, model), PromptReader(library, model, max_tokens))
