"""DeepSeek-OCR-2: transformers' own model with the interface of v1.

Owns only the adaptation: views as uint8, pages assembled without line breaks, and the first encoder's attention
computed without storing its relative-position bias, for which transformers' version takes 48 GiB at 8 views of 1024 px.
For an engine, `ocr2_parts` makes our own modules over the same weights.

Shape letters: B sequences, L tokens, V views, T tiles, H and W pixels, C colours, N tokens of a view, D decoder width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutput

from shared.deepseek_ocr.checkpoint import MAX_NAMED_KEYS, CheckpointError, weight_files
from shared.deepseek_ocr.decoder import Decoder
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from shared.deepseek_ocr.loss import loss_in_pieces
from shared.deepseek_ocr.ocr2_parts import native_decoder, sam_config, text_config
from shared.deepseek_ocr.pages import PageInputMixin
from shared.deepseek_ocr.public_config import ConfigError
from shared.deepseek_ocr.relative_attention import relative_attention, relative_table
from shared.deepseek_ocr.vision import normalise_views

OCR2_GEOMETRY = GeometryConfig(
    tile_px=768,
    max_tiles=6,
    squash=(),
    modes=(Mode.BASE, Mode.GUNDAM),
    default_mode=Mode.GUNDAM,
    line_breaks=False,
)
"""Sizes of transformers' image processor; its pages have no line breaks."""
LAYERS = "model.language_model.layers."
"""Prefix of the names of the decoder's layers."""


class FusedSamAttention(nn.Module):
    """Replaces transformers' SAM attention and keeps its parameters under their names."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.heads = original.num_attention_heads
        self.qkv, self.proj = original.qkv, original.proj
        self.rel_pos_h, self.rel_pos_w = original.rel_pos_h, original.rel_pos_w

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Attend within each grid; the second value would be the attention weights, which are never stored."""
        views, height, width, channels = hidden_states.shape
        qkv = self.qkv(hidden_states).view(views, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        rows, columns = relative_table(self.rel_pos_h, height), relative_table(self.rel_pos_w, width)
        out = relative_attention(query, key, value, rows, columns)
        return self.proj(out.transpose(1, 2).reshape(views, height, width, channels)), None


class Ocr2Mixin(PageInputMixin):
    """The interface of v1 for transformers' DeepSeek-OCR-2; a mixin that must precede its class."""

    geometry = OCR2_GEOMETRY

    if TYPE_CHECKING:
        model: Any
        config: Any
        lm_head: Any

    def encode_views(self, views_VHWC: Tensor) -> Tensor:
        """Encode views of 768 or 1024 px, all of one size.

        Args:
            views_VHWC: uint8, RGB.

        Returns:
            `[V, N, D]`, ready for `assemble_page`.
        """
        pixels = normalise_views(views_VHWC, self.model.view_separator.dtype)
        return self.model.multi_modal_projector(self.model.vision_tower(pixels).last_hidden_state)

    def assemble_page(
        self, global_tokens_ND: Tensor, tile_tokens_TND: Tensor | None, columns: int, rows: int
    ) -> Tensor:
        """Join the tokens of a page's views: tiles in order, global view, separator; without line breaks.

        Args:
            global_tokens_ND: tokens of the global view.
            tile_tokens_TND: tokens of the tiles in reading order, None without tiles.
            columns: tiles across, 0 without tiles.
            rows: tiles down, 0 without tiles.

        Returns:
            `[L, D]`.
        """
        separator = self.model.view_separator.to(global_tokens_ND.dtype).unsqueeze(0)
        tiles = [tile_tokens_TND.flatten(0, 1)] if tile_tokens_TND is not None and columns * rows else []
        return torch.cat((*tiles, global_tokens_ND, separator))

    def decode(
        self, embeds_BLD: Tensor, position_ids_BL: Tensor, mask: Tensor | None = None, cache: Any | None = None
    ) -> tuple[Tensor, None]:
        """Run the decoder over embedded tokens.

        Args:
            embeds_BLD: embedded tokens.
            position_ids_BL: positions of the tokens.
            mask: `[B, 1, L, S]`, True or 0 where attention is allowed; None: causal.
            cache: a transformers cache; None: only the new tokens.

        Returns:
            Hidden states `[B, L, D]` ready for `lm_head`, and None for v1's training penalty.
        """
        outputs = self.model.language_model(
            inputs_embeds=embeds_BLD, position_ids=position_ids_BL, attention_mask=mask, past_key_values=cache
        )
        return outputs.last_hidden_state, None

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        global_views_BHWC: Tensor | None = None,
        tiles_THWC: Tensor | None = None,
        tile_grids_B2: Tensor | Sequence[Sequence[int]] | None = None,
        labels: Tensor | None = None,
        loss_alone: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Predict the next token at each position, like transformers' `forward` but with v1's image arguments.

        Args:
            input_ids: `[B, L]`.
            inputs_embeds: `[B, L, D]` instead of `input_ids`.
            global_views_BHWC: see `PageInputMixin.image_features`.
            tiles_THWC: see `PageInputMixin.image_features`.
            tile_grids_B2: see `PageInputMixin.image_features`.
            labels: `[B, L]`, -100 for tokens that the loss ignores; shifted here.
            loss_alone: as in v1's `forward`; without effect without embedded tokens, or with an attention mask.
            **kwargs: the other arguments of transformers' `forward`.

        Returns:
            The output of transformers' `forward`; with `loss_alone`, only its loss.
        """
        if input_ids is not None and global_views_BHWC is not None:
            inputs_embeds = self.embed_page_inputs(input_ids, global_views_BHWC, tiles_THWC, tile_grids_B2)
            input_ids = None
        if loss_alone and labels is not None and inputs_embeds is not None and kwargs.get("attention_mask") is None:
            return CausalLMOutput(loss=cast("Any", self._loss_alone(inputs_embeds, labels, **kwargs)))
        forward = super().forward  # type: ignore[misc] # of the transformers class behind
        return forward(input_ids=input_ids, inputs_embeds=inputs_embeds, labels=labels, **kwargs)

    def _loss_alone(
        self,
        embeds_BLD: Tensor,
        labels_BL: Tensor,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> Tensor:
        hidden_BLD = self._decode_causally(embeds_BLD)
        vocab_size = self.config.get_text_config().vocab_size
        return loss_in_pieces(hidden_BLD[:, -logits_to_keep:], self.lm_head, vocab_size, labels_BL, num_items_in_batch)

    def _decode_causally(self, embeds_BLD: Tensor) -> Tensor:
        """The same as `decode` without mask and cache.

        The loop of transformers over the same layers would search the positions for packed sequences, which makes the
        host wait for the device and cannot be captured, and would keep an unused cache.
        """
        decoder = self.model.language_model
        positions_1L = torch.arange(embeds_BLD.shape[1], device=embeds_BLD.device)[None]
        rotary = decoder.rotary_emb(embeds_BLD, position_ids=positions_1L)
        hidden_BLD = embeds_BLD
        for layer in decoder.layers:
            hidden_BLD = layer(
                hidden_BLD, attention_mask=None, position_embeddings=rotary, position_ids=positions_1L, use_cache=False
            )
        return decoder.norm(hidden_BLD)


class DeepseekOcr2Reader(Ocr2Mixin, DeepseekOcr2ForConditionalGeneration):  # type: ignore[misc] # looser signature
    """DeepSeek-OCR-2 with v1's interface; the state dictionary is still that of transformers."""

    def __init__(self, config: DeepseekOcr2Config) -> None:
        super().__init__(config)
        _fuse_attention(self)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder in our own modules; not for a model whose modules PEFT or Unsloth have replaced."""
        return native_decoder(self)


def adopt(model: Any) -> Any:
    """Add v1's interface to a model that another library has loaded, whatever it has changed in the model's class.

    Args:
        model: an instance of transformers' DeepSeek-OCR-2 class or of a subclass.

    Returns:
        The same object.
    """
    kind = type(model)
    model.__class__ = type("AdoptedDeepseekOcr2", (Ocr2Mixin, kind), {"__module__": __name__})
    _fuse_attention(model)
    return model


def _fuse_attention(model: Any) -> None:
    for layer in model.model.vision_tower.sam_encoder.layers:
        layer.attn = FusedSamAttention(layer.attn)


def load_ocr2(
    folder: Path, device: torch.device | str, dtype: torch.dtype, layers_device: torch.device | str | None = None
) -> DeepseekOcr2Reader:
    """Load a checkpoint with transformers, from local files only.

    Args:
        folder: has config.json and safetensors of DeepSeek-OCR-2.
        device: of the weights.
        dtype: of the weights, whatever the files have.
        layers_device: of the weights in the decoder's layers; None: as the others.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A file is missing or broken, a value in config.json is not supported, or a tensor is missing or
            has the wrong shape.
    """
    config = DeepseekOcr2Config.from_pretrained(folder, local_files_only=True)
    try:
        text_config(config), sam_config(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    weight_files(folder)
    # Straight to the device if accelerate is installed: 6.8 GB through the memory of a busy host took a minute.
    straight = (
        layers_device is None
        and importlib.util.find_spec("accelerate") is not None
        and torch.device(device).type == "cuda"
    )
    try:
        loaded: Any = DeepseekOcr2Reader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            device_map={"": device} if straight else None,
            output_loading_info=True,
            # Reported, as missing ones are; transformers' own error does not name them.
            ignore_mismatched_sizes=True,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    model, report = loaded
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise CheckpointError(f"{folder}: missing or of another shape: {', '.join(absent[:MAX_NAMED_KEYS])}")
    if not straight:
        _move(model, torch.device(device), torch.device(layers_device or device))
    return cast("DeepseekOcr2Reader", model.eval())


def _move(model: nn.Module, device: torch.device, layers_device: torch.device) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(layers_device if name.startswith(LAYERS) else device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def skeleton(values: dict[str, Any]) -> DeepseekOcr2Reader:
    """The model without weights.

    Args:
        values: of config.json.

    Returns:
        On the device `meta`.

    Raises:
        ConfigError: A value is not supported.
    """
    with torch.device("meta"):
        model = DeepseekOcr2Reader(DeepseekOcr2Config.from_dict(values))
    text_config(model.config)
    return model
