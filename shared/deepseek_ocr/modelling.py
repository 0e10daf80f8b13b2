"""DeepSeek-OCR (v1): vision encoders, projector and decoder as one model for training and generation.

Owns how the parts are connected. Module names are the keys of the public checkpoint, so that adapters fit other engines
too; only the routed experts are stored differently (see `layout.py`). Nothing here waits for the device.

Shape letters: B sequences, L tokens, V views, T tiles, H and W pixels, C colours, N tokens of a view, D decoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.utils.generic import ModelOutput

from shared.deepseek_ocr.clip import ClipEncoder
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.decoder import Decoder, DecoderLayer, RMSNorm
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.initialisation import initialise
from shared.deepseek_ocr.loss import loss_in_pieces, next_token_loss
from shared.deepseek_ocr.moe import Experts
from shared.deepseek_ocr.pages import PageInputMixin
from shared.deepseek_ocr.sam import SamEncoder
from shared.deepseek_ocr.vision import assemble_page, normalise_views


@dataclass
class DeepseekOcrOutput(ModelOutput):
    """Result of a forward pass; `loss` includes the weighted `aux_loss` if `router_aux_loss_coef` is set."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    aux_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None


class Projector(nn.Module):
    """Linear map from the vision width to the decoder width."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Linear(vision_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Project each token."""
        return self.layers(x)


class DeepseekOcrModel(nn.Module):
    """Everything except the language head: the modules behind the public keys `model.*`."""

    def __init__(self, config: DeepseekOcrConfig) -> None:
        super().__init__()
        text = config.text_config
        self.config = config
        self.sam_model = SamEncoder(config.sam_config)
        self.vision_model = ClipEncoder(config.clip_config)
        self.projector = Projector(2 * config.clip_config.hidden_size, text.hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(text.hidden_size))
        # Spelt as in the public checkpoint.
        self.view_seperator = nn.Parameter(torch.zeros(text.hidden_size))
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(text, layer) for layer in range(text.num_hidden_layers))
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)

    def encode_views(self, views_VHWC: Tensor) -> Tensor:
        """Encode views of one size, from any number of pages."""
        return self._encode(views_VHWC, None)

    def encode_bands(self, bands_VHWC: Tensor, first_row: int) -> Tensor:
        """Encode bands of rows of views of the stored size."""
        return self._encode(bands_VHWC, first_row)

    def _encode(self, views_VHWC: Tensor, first_row: int | None) -> Tensor:
        """Encode views, or bands that begin at a row of tokens."""
        dtype, sam = self.image_newline.dtype, self.config.sam_config
        patches = None if first_row is None else first_row * math.prod(sam.downsample_strides)
        sam_VCHW = self.sam_model(normalise_views(views_VHWC, dtype), patches)
        clip_VNC = self.vision_model(sam_VCHW, first_row)
        return self.projector(torch.cat((clip_VNC, sam_VCHW.flatten(2).transpose(1, 2)), dim=-1))

    @property
    def decoder(self) -> Decoder:
        """The decoder's parts."""
        return Decoder(self.config.text_config, self.embed_tokens, self.layers, self.norm, self.layers)

    def decode(
        self, embeds_BLD: Tensor, position_ids_BL: Tensor, mask: Tensor | None = None, cache: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the decoder's layers.

        Args:
            embeds_BLD: embedded tokens.
            position_ids_BL: their positions, `[1, L]` where all rows share them.
            mask: see `decoder.Attention`.
            cache: see `decoder.Attention`.

        Returns:
            Normalised hidden states `[B, L, D]`, and the mean load-balance penalty while training.
        """
        return self.decoder.decode(embeds_BLD, position_ids_BL, mask, cache)


class DeepseekOcrForConditionalGeneration(PageInputMixin, PreTrainedModel, GenerationMixin):  # type: ignore[misc] # looser signature
    """From page images and a prompt to text tokens.

    A sequence consists of bos, one image token per vision token, the prompt's text tokens, and the answer.
    """

    config_class: type[DeepseekOcrConfig] = DeepseekOcrConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 - declared as an instance variable by the base class
    _supports_sdpa = True
    _supports_attention_backend = False
    _no_split_modules = {"SamBlock", "ClipLayer", "DecoderLayer"}  # noqa: RUF012 - as above

    def __init__(self, config: DeepseekOcrConfig) -> None:
        super().__init__(config)
        text = config.text_config
        # If this is not set, transformers makes no masks at all, without a warning.
        text._attn_implementation = "sdpa"
        self.model = DeepseekOcrModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @property
    def geometry(self) -> GeometryConfig:
        """Sizes and rules for cutting pages into views, from the configuration."""
        return self.config.geometry_config()

    @property
    def decoder(self) -> Decoder:
        """The decoder's parts."""
        return self.model.decoder

    def encode_views(self, views_VHWC: Tensor) -> Tensor:
        """Encode views of one size, from any number of pages.

        Args:
            views_VHWC: uint8, RGB; sides are multiples of the patch size.

        Returns:
            `[V, N, D]`, ready for `assemble_page`.
        """
        return self.model.encode_views(views_VHWC)

    def encode_bands(self, bands_VHWC: Tensor, first_row: int) -> Tensor:
        """Encode bands of rows of views as if the rest of the views were not there.

        Args:
            bands_VHWC: uint8, RGB; as wide as views of the stored size.
            first_row: where they begin in such views, in rows of vision tokens.

        Returns:
            `[V, N, D]`, rows of tokens from top to bottom.

        Raises:
            ValueError: a band reaches beyond the view.
        """
        return self.model.encode_bands(bands_VHWC, first_row)

    def assemble_page(
        self, global_tokens_ND: Tensor, tile_tokens_TND: Tensor | None, columns: int, rows: int
    ) -> Tensor:
        """Join the tokens of a page's views: tiles, global view, separator; with a line break after each row.

        Args:
            global_tokens_ND: tokens of the global view.
            tile_tokens_TND: tokens of the tiles in reading order, None without tiles.
            columns: tiles across, 0 without tiles.
            rows: tiles down, 0 without tiles.

        Returns:
            `[L, D]`, where L is `ViewPlan.num_vision_tokens`.
        """
        return assemble_page(
            global_tokens_ND,
            tile_tokens_TND,
            columns,
            rows,
            line_break_D=self.model.image_newline,
            separator_D=self.model.view_seperator,
        )

    def decode(
        self, embeds_BLD: Tensor, position_ids_BL: Tensor, mask: Tensor | None = None, cache: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the decoder over embedded tokens.

        Args:
            embeds_BLD: embedded tokens.
            position_ids_BL: their positions, `[1, L]` where all rows share them.
            mask: see `decoder.Attention`.
            cache: see `decoder.Attention`.

        Returns:
            Hidden states `[B, L, D]` ready for `lm_head`, and the mean load-balance penalty while training.
        """
        return self.model.decode(embeds_BLD, position_ids_BL, mask, cache)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        global_views_BHWC: Tensor | None = None,
        tiles_THWC: Tensor | None = None,
        tile_grids_B2: Tensor | Sequence[Sequence[int]] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        loss_alone: bool = False,
        **_: Any,
    ) -> DeepseekOcrOutput:
        """Predict the next token at each position.

        Args:
            input_ids: `[B, L]`.
            attention_mask: None: causal, which is enough for right-padded batches without a cache. `[B, S]`: 1 for
                tokens, 0 for padding. `[B, 1, L, S]`: used as it is, bool or additive.
            position_ids: `[B, L]`; None: counted from the cache's length.
            past_key_values: a transformers cache, or an object with the same `update(keys, values, layer)`.
            inputs_embeds: `[B, L, D]` instead of `input_ids`.
            global_views_BHWC: see `image_features`; only for the call whose `input_ids` have the image tokens.
            tiles_THWC: see `image_features`.
            tile_grids_B2: see `image_features`.
            labels: `[B, L]`, -100 for tokens that the loss ignores; shifted here.
            use_cache: make and return a cache if none is given.
            cache_position: ignored.
            logits_to_keep: last positions to compute logits for, or their indices; 0: all.
            num_items_in_batch: divide the loss by this instead of by the number of labels.
            loss_alone: with labels, return no logits, so that they need not all be in memory at once.

        Returns:
            Logits `[B, kept, vocabulary]`, the loss if labels are given, and the cache.

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds`, or images without `input_ids`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            ids = cast("Tensor", input_ids)
            inputs_embeds = self.embed_page_inputs(ids, global_views_BHWC, tiles_THWC, tile_grids_B2)
        elif global_views_BHWC is not None:
            raise ValueError("images need input_ids, whose image tokens say where they belong")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        position_ids, mask = self._positions_and_mask(inputs_embeds, attention_mask, position_ids, past_key_values)
        hidden, aux_loss = self.model.decode(inputs_embeds, position_ids, mask, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss_alone = loss_alone and labels is not None
        logits = None if loss_alone else self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            if logits is None:
                vocab_size = self.config.text_config.vocab_size
                loss = loss_in_pieces(hidden[:, kept], self.lm_head, vocab_size, labels, num_items_in_batch)
            else:
                loss = next_token_loss(logits, labels, num_items_in_batch)
            coefficient = self.config.text_config.router_aux_loss_coef
            if aux_loss is not None and coefficient:
                loss = loss + coefficient * aux_loss
        return DeepseekOcrOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, aux_loss=aux_loss, last_hidden_state=hidden
        )

    def _positions_and_mask(
        self, embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(embeds.shape[1], device=embeds.device) + seen).unsqueeze(0)
        if attention_mask is not None and attention_mask.ndim == 4:
            if attention_mask.dtype != torch.bool:
                attention_mask = attention_mask.to(embeds.dtype)
            return position_ids, attention_mask
        if attention_mask is None and cache is None:
            return position_ids, None
        mask = create_causal_mask(
            config=self.config.text_config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=None,
        )
        return position_ids, cast("Tensor | None", mask)  # a BlockMask is only for flex attention

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings, as transformers asks for them."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.set_submodule("embed_tokens", value)

    def set_moe_implementation(self, name: str) -> None:
        """Choose how routed experts are computed in all layers: `grouped`, `dense` or `stacked`."""
        self.config.text_config.moe_implementation = name
        for module in self.modules():
            if isinstance(module, Experts):
                module.implementation = name

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not initialise(module, self.config.text_config.initializer_range):
            super()._init_weights(module)
