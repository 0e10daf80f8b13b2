"""DeepSeek-OCR with its public dimensions and random weights, random adapters for it, and pages of noise.

For measuring speed without a checkpoint: no file is read. Answers mean nothing, never end by themselves (no token is
the end token) and loop, so switch the loop rule off with `NO_LOOPS`.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.engine.engine import TorchEngine
from service.engine.lora.files import AdapterFiles
from service.engine.lora.shapes import layer_shapes
from shared.contract.peft_config import parse_config
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.checkpoint import read_config, save_checkpoint
from shared.deepseek_ocr.configuration import (
    ClipConfig,
    DeepseekOcrConfig,
    SamConfig,
    TextConfig,
    geometry_to_json,
)
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan, plan_views
from shared.deepseek_ocr.loading import TOKENIZER_FILE, LoadedCheckpoint
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.tokenizer import OcrTokenizer

if TYPE_CHECKING:
    from transformers import DeepseekOcr2Config

NO_LOOPS = LoopRule(min_tokens=1_000_000)
SMALL, PAGE = (640, 640), (1240, 1754)
"""Width and height in pixels of the two pages that are measured: 276 and 906 prompt tokens."""
TINY_PX = 64
PROMPT_TEXT_IDS = (201, 2)
"""As many as the public tokenizer makes of the public prompts' line break and text in the measured peers."""
WEIGHT_STD = 0.02
TOKENIZER_TEXT = f"{string.ascii_letters}{string.digits} Free OCR. the page\n"
"""What the byte-level tokenizer is trained on."""
ADAPTER_STD = 1e-3
"""Of an adapter's up projections; small, so that activations stay those of the base."""


class StubTokenizer(OcrTokenizer):
    """Writes nothing readable: `<17>` for token 17, and no token ends an answer."""

    def __init__(self, image_id: int) -> None:  # no backend: there is no vocabulary
        self.bos_id, self.eos_id, self.pad_id, self.image_id = 0, -1, 2, image_id

    def encode_prompt(self, plan: ViewPlan, prompt: str, more_plans: Sequence[ViewPlan] = ()) -> list[int]:
        """The public model's number of ids, whatever the prompt says."""
        del prompt
        num_image_tokens = sum(each.num_vision_tokens for each in (plan, *more_plans))
        return [self.bos_id, *[self.image_id] * num_image_tokens, *PROMPT_TEXT_IDS]

    def token_bytes(self, token_id: int) -> bytes:
        """The id in angle brackets."""
        return f"<{token_id}>".encode()


def random_model(
    device: torch.device | str, dtype: torch.dtype, config: DeepseekOcrConfig | None = None, seed: int = 0
) -> DeepseekOcrForConditionalGeneration:
    """Build a model in evaluation mode with random weights; needs no memory besides the weights' own."""
    with torch.device("meta"):
        model = DeepseekOcrForConditionalGeneration(config or DeepseekOcrConfig())
    generator = torch.Generator(device).manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = torch.empty(parameter.shape, device=device, dtype=dtype)
        # One-dimensional weights are those of norms, except position embeddings.
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        state[name] = tensor.fill_(1.0) if is_norm else tensor.normal_(0.0, WEIGHT_STD, generator=generator)
        if name.endswith("bias"):
            tensor.zero_()
    model.load_state_dict(state, assign=True)
    return model.eval()


def random_checkpoint(
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    config: DeepseekOcrConfig | None = None,
    seed: int = 0,
) -> LoadedCheckpoint:
    """What `load_checkpoint` would give for the public checkpoint, except its weights and tokenizer."""
    model = random_model(device, dtype, config, seed)
    tokenizer = StubTokenizer(model.config.image_token_id)
    return LoadedCheckpoint(model, tokenizer, model.config.geometry_config(), "deepseek-ocr-random")


def tiny_config(kind: type[DeepseekOcrConfig] = DeepseekOcrConfig) -> DeepseekOcrConfig:
    """A model of v1's class in miniature, or Unlimited-OCR's, with nano's vocabulary; a page of 64 px has 7 tokens."""
    return kind(
        sam_config=SamConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=TINY_PX,
            window_size=2,
            global_layers=(1,),
            neck_channels=16,
            downsample_channels=(32, 32),
            downsample_strides=(2, 1),
        ),
        clip_config=ClipConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        text_config=TextConfig(
            vocab_size=2048,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
        ),
        geometry=geometry_to_json(
            GeometryConfig(
                downsample=2,
                base_px=TINY_PX,
                tile_px=TINY_PX,
                global_px=TINY_PX,
                squash=(),
                modes=(Mode.BASE, Mode.GUNDAM),
            )
        ),
    )


def noise_page(size: tuple[int, int], geometry: GeometryConfig, seed: int = 0) -> PageViews:
    """Views of a page of noise in the default mode; `size` is width and height in pixels."""
    plan = plan_views(*size, geometry.default_mode, geometry)
    noise = np.random.default_rng(seed)

    def views(*shape: int) -> Any:
        return noise.integers(0, 256, (*shape, 3), np.uint8)

    return PageViews(plan, views(plan.global_px, plan.global_px), views(plan.num_tiles, plan.tile_px, plan.tile_px))


def noise_pages(size: tuple[int, int], geometry: GeometryConfig, count: int) -> Sequence[PageViews]:
    """Pages of one size, at most 16 of them different, as the peers were measured."""
    different = [noise_page(size, geometry, seed) for seed in range(min(count, 16))]
    return [different[index % len(different)] for index in range(count)]


def write_random_checkpoint(
    folder: Path, tokenizer_of: Path, device: torch.device | str, config: DeepseekOcrConfig | None = None
) -> Path:
    """Write a checkpoint with random weights that the service loads, some 6.7 GB at the public dimensions.

    Tokenizer and special ids are those of the checkpoint `tokenizer_of`; other ids read as `t2048`.
    """
    own = read_config(tokenizer_of)
    config = config or DeepseekOcrConfig()
    config.image_token_id = own["image_token_id"]
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, role, own["language_config"][role])
    save_checkpoint(random_model(device, torch.bfloat16, config), folder)
    text = (tokenizer_of / TOKENIZER_FILE).read_text(encoding="utf-8")
    (folder / TOKENIZER_FILE).write_text(with_every_token(text, config.text_config.vocab_size), encoding="utf-8")
    return folder


def with_every_token(tokenizer_json: str, vocab_size: int) -> str:
    """A tokenizer.json in which ids without a text read as `t2048`, so that drawn answers can be read."""
    tokenizer = json.loads(tokenizer_json)
    vocabulary = tokenizer["model"]["vocab"]
    taken = {*vocabulary.values(), *(each["id"] for each in tokenizer["added_tokens"])}
    vocabulary |= {f"t{number}": number for number in range(vocab_size) if number not in taken}
    return json.dumps(tokenizer)


def adapter_names(count: int) -> list[str]:
    """What `load_random_adapters` calls them."""
    return [f"random-{index}@1" for index in range(count)]


def load_random_adapters(engine: TorchEngine, text: TextConfig, count: int, rank: int) -> None:
    """Fill an engine's slots; it has as many, for this rank. Names are those of v1's layers."""
    for seed, name in enumerate(adapter_names(count)):
        engine.load_adapter(name, random_adapter(text, rank, seed))


def random_adapter(
    text: TextConfig, rank: int, seed: int, strength: float = ADAPTER_STD, layers: str = "model.layers."
) -> AdapterFiles:
    """One adapter, as PEFT would write it, in every projection that the engine takes.

    `layers` is what the names of the model's decoder layers begin with.
    """
    noise = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(text.num_hidden_layers):
        mlp = "mlp" if layer < text.first_k_dense_replace else "mlp.shared_experts"
        modules = {
            "qkv": [f"self_attn.{name}_proj" for name in "qkv"],
            "out": ["self_attn.o_proj"],
            "gate_up": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
            "down": [f"{mlp}.down_proj"],
        }
        for group, shape in layer_shapes(text, layer).items():
            for module in modules[group]:
                key = f"base_model.model.{layers}{layer}.{module}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(rank, shape.inputs, generator=noise)
                ups = torch.randn(shape.part_width, rank, generator=noise)
                tensors[f"{key}.lora_B.weight"] = ups * strength
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    return AdapterFiles(tensors, parse_config(json.dumps(config).encode()))


def write_random_adapter(
    folder: Path,
    text: TextConfig,
    rank: int,
    seed: int,
    *,
    strength: float = ADAPTER_STD,
    dtype: torch.dtype,
    layers: str = "model.layers.",
) -> int:
    """Write a random adapter as PEFT does, into a new folder; the weights' size in bytes."""
    from safetensors.torch import save_file

    files = random_adapter(text, rank, seed, strength, layers)
    folder.mkdir()
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in files.tensors.items()}, weights)
    config = {**files.config.values, "base_model_name_or_path": "random"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return weights.stat().st_size


def ocr2_config(*, tiny: bool = False) -> DeepseekOcr2Config:
    """DeepSeek-OCR-2 with its public dimensions, or a tiny one, whose views still have 1024 px and 257 tokens."""
    from transformers import DeepseekOcr2Config

    text = {
        "vocab_size": 129280, "hidden_size": 1280, "intermediate_size": 6848, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 10, "moe_intermediate_size": 896, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 11,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 262144, "n_group": 1,
        "topk_group": 1,
    }  # fmt: skip
    encoder = {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }  # fmt: skip
    sam: dict[str, Any] = {"downsample_channels": [512, 896]}
    if tiny:
        text |= {
            "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "moe_intermediate_size": 16, "n_routed_experts": 4,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"],
        }  # fmt: skip
        encoder |= {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }  # fmt: skip
        sam = {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "global_attn_indexes": [],
            "output_channels": 16, "downsample_channels": [16, 32], "mlp_dim": 32,
        }  # fmt: skip
    return DeepseekOcr2Config(
        text_config=text, vision_config={"sam_config": sam, "encoder_config": encoder}, image_token_id=3
    )


def random_ocr2_checkpoint(
    device: torch.device | str = "cuda", dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> LoadedCheckpoint:
    """What `load_checkpoint` would give for DeepSeek-OCR-2, except its weights and tokenizer."""
    from shared.deepseek_ocr.ocr2 import OCR2_GEOMETRY, DeepseekOcr2Reader

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = DeepseekOcr2Reader(ocr2_config())
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, WEIGHT_STD, generator=generator)
    return LoadedCheckpoint(model.eval(), StubTokenizer(3), OCR2_GEOMETRY, "deepseek-ocr-2-random")


def write_random_ocr2(folder: Path, *, tiny: bool) -> None:
    """Write a checkpoint of DeepSeek-OCR-2 with random weights and a byte-level tokenizer of few tokens.

    A tiny one is for trying a program on a CPU; its views still have 1024 px and 257 tokens. Ids beyond the tokenizer's
    read as `t2048`.
    """
    from transformers import (
        DeepseekOcr2ForConditionalGeneration,
        DeepseekOcr2Processor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import DeepseekOcr2ImageProcessorPil

    from trainer.nano.corpus.tokenizer import train_tokenizer

    config = ocr2_config(tiny=tiny)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = DeepseekOcr2ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, WEIGHT_STD)
    model.save_pretrained(folder)
    core = train_tokenizer([TOKENIZER_TEXT] * 4, vocab_size=280)
    bos, eos, pad, image = (core.id_to_token(number) for number in range(4))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad, extra_special_tokens={"image_token": image}
    )
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_FILE
    path.write_text(with_every_token(path.read_text(encoding="utf-8"), config.get_text_config().vocab_size))
    DeepseekOcr2Processor(image_processor=DeepseekOcr2ImageProcessorPil(), tokenizer=tokenizer).save_pretrained(folder)
