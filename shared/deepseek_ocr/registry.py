"""The models of the family: how each is loaded, where its parts are, and which fast paths of the engine support it.

To add a model, write one file with its class (it implements `protocol.OcrModel`) and a loader, and add an entry to
`MODELS`; `tests/unit/shared/deepseek_ocr/test_registry.py` does that. Imports neither torch nor a model: loaders are
named, and imported when a checkpoint needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from shared.contract.prompts import PromptSet


class SecondEncoder(StrEnum):
    """What reads the first encoder's tokens."""

    CLIP = "clip"
    QUERIES = "queries"
    """A causal transformer with learned queries, of which the tokens are the results."""


@dataclass(frozen=True, slots=True)
class ModelKind:
    """Properties of a model that the service and the trainer need before, or without, loading it."""

    family: str
    """What the model is called to users."""
    loader: str
    """`module:function` with the signature of `checkpoint.load_model`."""
    skeleton: str
    """`module:function` from the values in config.json to the model without weights; it raises `ConfigError`."""
    decoder: str
    """Prefix of the names of the decoder's layers, where adapters go."""
    vision: tuple[str, ...]
    """Prefixes of names in the vision part, which is trained only on request."""
    has_fast_decoder: bool = False
    """Whether the engine's paged decoder (GPU), packed decoder (CPU) and 8-bit weights support its layers."""
    second_encoder: SecondEncoder | None = None
    """After SAM, where the engine's fast encoder supports both; None: it supports neither."""
    decoder_aliases: tuple[str, ...] = ()
    """Other prefixes of the same layers in adapters, such as those of the public checkpoint's own code."""
    takes_adapters: bool = False
    """Whether the engine serves adapters on it."""
    names_are_tensors: bool = False
    """Whether its dense modules have the same names as the checkpoint's tensors."""
    prompts: PromptSet = PromptSet.DEEPSEEK
    """What it is asked with."""
    reads_pages_together: bool = False
    """Whether it was trained to read several pages in one prompt."""
    adopter: str | None = None
    """`module:function` that turns an object of transformers' class, loaded by another library, into an `OcrModel`.
    None: only `loader` can load the model."""


V1 = ModelKind(
    family="DeepSeek-OCR",
    skeleton="shared.deepseek_ocr.checkpoint:skeleton",
    loader="shared.deepseek_ocr.checkpoint:load_model",
    decoder="model.layers.",
    vision=("model.sam_model.", "model.vision_model.", "model.projector."),
    has_fast_decoder=True,
    second_encoder=SecondEncoder.CLIP,
    takes_adapters=True,
    names_are_tensors=True,
)
"""DeepSeek-OCR and nano; a model that differs in numbers alone is `replace(V1, loader=...)`."""

UNLIMITED = replace(
    V1,
    family="Unlimited-OCR",
    loader="shared.deepseek_ocr.unlimited:load_unlimited",
    skeleton="shared.deepseek_ocr.unlimited:skeleton",
    prompts=PromptSet.UNLIMITED,
    reads_pages_together=True,
)

MODELS = {
    "deepseek_vl_v2": V1,
    "unlimited-ocr": UNLIMITED,
    "unlimited_ocr": UNLIMITED,
    "deepseek_ocr2": ModelKind(
        family="DeepSeek-OCR-2",
        loader="shared.deepseek_ocr.ocr2:load_ocr2",
        skeleton="shared.deepseek_ocr.ocr2:skeleton",
        decoder="model.language_model.layers.",
        decoder_aliases=("model.layers.",),
        vision=("model.vision_tower.", "model.multi_modal_projector."),
        has_fast_decoder=True,
        second_encoder=SecondEncoder.QUERIES,
        takes_adapters=True,
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
