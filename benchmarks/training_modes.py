"""LoRA training steps on DeepSeek-OCR-2 by one of several ways: what `training.py` times, one way a process.

Ways (`mode`):

- `plain` is transformers and PEFT alone, with gradient checkpointing.
- `unsloth` is Unsloth's loading, patches and checkpointing.
- `plain-cached` and `unsloth-cached` take the page's vision features from the host's memory in the place of pixels,
  since a frozen encoder gives the same ones in every epoch.
- `plain4bit` and `unsloth4bit` keep frozen linear weights in 4 bits.
- `cached` is this project's own class of the model without Unsloth: cached features, logits for the answer alone.
- `cached-chunked` is what this project's training does with `--gradient-checkpointing`: the loss piece by piece
  (`shared.deepseek_ocr.loss`). `cached-kept` is what it does without: activations are kept in the place of computing
  them twice. `graphed` and `graphed-chunked` are the two with `--cuda-graphs`.

Unsloth has to be imported before transformers, so nothing of either is imported at the top.

Shape letters: B samples, L tokens, D decoder width, N answer tokens of all samples, V vocabulary, C colours, H and W
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.training.graphs import GraphedLoss

RANK = 16
TARGETS = r".*language_model.*self_attn\.(q_proj|k_proj|v_proj|o_proj)"
"""Explicit: without it Unsloth also adapts the 64 routed experts (61 M trainable parameters in the place of 2 M)."""
IGNORED_LABEL = -100
WHOLE_LOGITS = "cached"
IMAGE_PX = 1024
MODES = ("plain", "plain-cached", "plain4bit", "unsloth", "unsloth-cached", "unsloth4bit", "cached", "cached-kept",
         "cached-chunked", "graphed", "graphed-chunked")  # fmt: skip
OURS = ("cached", "graphed")
KEPT = ("cached-kept", "graphed")
"""They keep activations; all others compute them twice."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """A model with an adapter, ready for steps."""

    mode: str
    model: Any
    device: torch.device
    image_tokens: int
    image_px: int = IMAGE_PX

    @property
    def is_cached(self) -> bool:
        """Whether steps start from vision features."""
        return "cached" in self.mode or self.is_graphed

    @property
    def is_ours(self) -> bool:
        """Whether the model is this project's class."""
        return self.mode.startswith(OURS)

    @property
    def is_graphed(self) -> bool:
        """Whether forward and backward are recorded once."""
        return self.mode.startswith("graphed")

    @property
    def trainable(self) -> int:
        """Trained parameters."""
        return sum(weights.numel() for weights in self.model.parameters() if weights.requires_grad)


def family(mode: str) -> str:
    """Ways of one family differ in what they do with a model, not in the model."""
    if mode.startswith(OURS):
        return "kept" if mode in KEPT else "recomputed"
    return mode.partition("-")[0]


def load(mode: str, checkpoint: str, device: torch.device, max_seq_length: int, image_tokens: int) -> Trained:
    """Load a checkpoint of DeepSeek-OCR-2 and add an adapter, in one of the ways.

    Args:
        mode: One of `MODES`.
        checkpoint: Its folder.
        device: Where it trains.
        max_seq_length: What Unsloth is told.
        image_tokens: Of a global view.

    Returns:
        The model in training mode.
    """
    if mode.startswith("unsloth"):
        model = _unsloth(mode, checkpoint, max_seq_length)
    elif mode.startswith(OURS):
        from shared.deepseek_ocr.ocr2 import DeepseekOcr2Reader
        from trainer.backends.peft import recompute_layers

        base: torch.nn.Module = DeepseekOcr2Reader.from_pretrained(checkpoint, dtype=_dtype(device))
        model = _with_peft(base.to(device))
    else:
        from transformers import AutoModelForImageTextToText

        options = _quantisation() if mode.startswith("plain4bit") else {}
        model = _with_peft(
            AutoModelForImageTextToText.from_pretrained(
                checkpoint, dtype=_dtype(device), device_map={"": str(device)}, **options
            )
        )
    if mode.startswith(OURS):
        if mode not in KEPT:
            recompute_layers(model.get_base_model(), keeps_chance=False)
    elif not mode.startswith("unsloth"):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Trained(mode, model.train(), device, image_tokens, model.config.vision_config.sam_config.image_size)


def make_step(trained: Trained, batch: int, text_tokens: int) -> Callable[[], Tensor]:
    """A function that trains one step, always on the same images and on new texts.

    Args:
        trained: The model.
        batch: Samples a step.
        text_tokens: Length of each answer.

    Returns:
        Does forward, backward and update; the loss.
    """
    model, device = trained.model, trained.device
    weights = [each for each in model.parameters() if each.requires_grad]
    for name, each in model.named_parameters():
        if "lora_B" in name:
            each.data.zero_()  # whatever was trained before, the first loss is the base model's
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=device.type == "cuda")
    torch.manual_seed(SEED)
    size = (batch, 3, trained.image_px, trained.image_px)
    pixels_BCHW = torch.randn(size, dtype=_dtype(device)).to(device)
    features = _features(trained, pixels_BCHW) if trained.is_cached else []
    fixed = _arguments(trained, text_tokens)

    def loss_of(inputs: Mapping[str, Any]) -> Tensor:
        # Inside, as what autocast has cast must not outlive a recording.
        with _autocast(device):
            return model(**inputs, **fixed).loss

    graphed = GraphedLoss(loss_of, weights) if trained.is_graphed else None

    def step() -> Tensor:
        inputs = _inputs(trained, batch, text_tokens, features)
        if not trained.is_cached:
            inputs |= {"pixel_values": pixels_BCHW, "num_local_patches": [0] * batch}
        loss: Tensor
        if graphed is not None:
            loss = graphed.backward(inputs)
        else:
            loss = loss_of(inputs)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _unsloth(mode: str, checkpoint: str, max_seq_length: int) -> Any:
    from unsloth import FastVisionModel

    model, _ = FastVisionModel.from_pretrained(
        checkpoint,
        load_in_4bit="4bit" in mode,
        max_seq_length=max_seq_length,
        use_gradient_checkpointing="unsloth",
        dtype=torch.bfloat16,
    )
    model = FastVisionModel.get_peft_model(
        model, target_modules=TARGETS, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", random_state=SEED
    )
    FastVisionModel.for_training(model)
    return model


def _with_peft(base: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))


def _quantisation() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config}


def _features(trained: Trained, pixels_BCHW: Tensor) -> list[Tensor]:
    """Vision features `[L, D]` of each page, kept where the training loop keeps them."""
    inner = trained.model.get_base_model().model
    with torch.no_grad(), _autocast(trained.device):
        found = [inner.get_image_features(page_CHW[None]).pooler_output[0] for page_CHW in pixels_BCHW]
    kept = [features_LD.to("cpu", _dtype(trained.device)) for features_LD in found]
    return [features_LD.pin_memory() if trained.device.type == "cuda" else features_LD for features_LD in kept]


def _inputs(trained: Trained, batch: int, text_tokens: int, features: list[Tensor]) -> dict[str, Any]:
    config, device = trained.model.config, trained.device
    last = config.get_text_config().vocab_size * 2 // 3
    text_BL = torch.randint(100, last, (batch, text_tokens))
    image_BL = torch.full((batch, trained.image_tokens), config.image_token_id)
    ids_BL = torch.cat([torch.zeros(batch, 1, dtype=torch.long), image_BL, text_BL], 1).to(device)
    labels_BL = ids_BL.clone()
    labels_BL[:, : trained.image_tokens + 1] = IGNORED_LABEL
    if not features:
        return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "labels": labels_BL}
    features_BLD = torch.stack([features_LD.to(device, non_blocking=True) for features_LD in features])
    embeds_BLD = trained.model.get_input_embeddings()(ids_BL)
    start, stop = 1, 1 + trained.image_tokens
    embeds_BLD = torch.cat([embeds_BLD[:, :start], features_BLD.to(embeds_BLD.dtype), embeds_BLD[:, stop:]], 1)
    if not trained.is_ours:
        return {"inputs_embeds": embeds_BLD, "attention_mask": torch.ones_like(ids_BL), "labels": labels_BL}
    return {"inputs_embeds": embeds_BLD, "labels": labels_BL[:, -text_tokens - 1 :]}


def _arguments(trained: Trained, text_tokens: int) -> dict[str, Any]:
    """What each step says beside its tensors."""
    if not trained.is_ours:
        return {}
    return {"logits_to_keep": text_tokens + 1, "use_cache": False, "loss_alone": trained.mode != WHOLE_LOGITS}


def _autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
