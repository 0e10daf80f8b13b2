"""The models of the family: how each is loaded, where its parts are, and which fast paths of the engine support it.

To add a model, write one file with its class (it implements `protocol.OcrModel`) and a loader, and add an entry to
`MODELS`; `tests/unit/shared/deepseek_ocr/test_registry.py` does that. Imports neither torch nor a model: loaders are
named, and imported when a checkpoint needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shared.contract.prompts import PromptSet


@dataclass(frozen=True, slots=True)
class ModelKind:
    """Properties of a model that the service and the trainer need before, or without, loading it."""

    loader: str
    """`module:function` with the signature of `checkpoint.load_model`."""
    decoder: str
    """Prefix of the names of the decoder's layers, where adapters go."""
    vision: tuple[str, ...]
    """Prefixes of names in the vision part, which is trained only on request."""
    family: str = "DeepSeek-OCR"
    """What `GET /v1/models` calls it."""
    has_fast_decoder: bool = False
    """Whether the engine's paged decoder (GPU), packed decoder (CPU) and 8-bit weights support its layers."""
    has_fast_vision: bool = False
    """Whether its encoders are the SAM and CLIP of the engine's `VisionEncoder`."""
    takes_adapters: bool = False
    """Whether the engine serves adapters on it."""
    names_are_tensors: bool = False
    """Whether its dense modules have the same names as the checkpoint's tensors."""
    configurator: str = "shared.deepseek_ocr.public_config:config_from_public"
    """`module:function` that makes the configuration of a model with a fast decoder from config.json's values."""
    prompts: PromptSet = PromptSet.DEEPSEEK
    """What it is asked with."""
    reads_pages_together: bool = False
    """Whether it was trained to read several pages in one prompt."""
    adopter: str | None = None
    """`module:function` that turns an object of transformers' class, loaded by another library, into an `OcrModel`.
    None: only `loader` can load the model."""


V1 = ModelKind(
    loader="shared.deepseek_ocr.checkpoint:load_model",
    decoder="model.layers.",
    vision=("model.sam_model.", "model.vision_model.", "model.projector."),
    has_fast_decoder=True,
    has_fast_vision=True,
    takes_adapters=True,
    names_are_tensors=True,
)
"""DeepSeek-OCR and nano; a model that differs in numbers alone is `replace(V1, loader=...)`."""

UNLIMITED = replace(
    V1,
    loader="shared.deepseek_ocr.unlimited:load_unlimited",
    family="Unlimited-OCR",
    configurator="shared.deepseek_ocr.unlimited:config_from_values",
    prompts=PromptSet.UNLIMITED,
    reads_pages_together=True,
)

MODELS = {
    "deepseek_vl_v2": V1,
    "unlimited-ocr": UNLIMITED,
    "unlimited_ocr": UNLIMITED,
    "deepseek_ocr2": ModelKind(
        loader="shared.deepseek_ocr.ocr2:load_ocr2",
        family="DeepSeek-OCR-2",
        decoder="model.language_model.layers.",
        vision=("model.vision_tower.", "model.multi_modal_projector."),
        adopter="shared.deepseek_ocr.ocr2:adopt",
    ),
}
"""By `model_type` in config.json."""


def find_kind(model_type: object) -> ModelKind | None:
    """The kind for a `model_type` of config.json, which may be any JSON value; None if it is unknown."""
    return MODELS.get(model_type) if isinstance(model_type, str) else None


def kind_of(model: Any) -> ModelKind:
    """The kind of a loaded model."""
    return MODELS[model.config.model_type]
