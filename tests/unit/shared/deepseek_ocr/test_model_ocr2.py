"""DeepSeek-OCR-2 through transformers' own class, at a tiny size with random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration

from shared.deepseek_ocr.checkpoint import CheckpointError, save_checkpoint
from shared.deepseek_ocr.geometry import Mode, plan_views
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.ocr2 import OCR2_GEOMETRY, DeepseekOcr2Reader
from shared.deepseek_ocr.tokenizer import BOS, EOS, GROUNDING_TOKENS, IMAGE, PAD
from shared.deepseek_ocr.vision import normalise_views
from tests.unit.shared.deepseek_ocr.tiny_models import prompt_ids, tiny_model, views

SIDE_PX = 768  # the smallest view that its learned queries exist for
VIEW_TOKENS = 144


def write_tokenizer(folder: Path) -> None:
    special = (BOS, EOS, PAD, IMAGE, *GROUNDING_TOKENS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def theirs() -> DeepseekOcr2ForConditionalGeneration:
    sam = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "output_channels": 8,
        "global_attn_indexes": [1],
        "image_size": 256,
        "window_size": 14,
        "downsample_channels": [8, 16],
    }
    encoder = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    text = {
        "vocab_size": 300,
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "n_group": 1,
        "topk_group": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "max_position_embeddings": 1024,
    }
    config = DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder}, text_config=text, image_token_id=3
    )
    torch.manual_seed(0)
    model = DeepseekOcr2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


@pytest.fixture(scope="module")
def folder(theirs: DeepseekOcr2ForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ocr2")
    theirs.save_pretrained(path)
    write_tokenizer(path)
    return path


@torch.inference_mode()
def test_answers_are_those_of_transformers(theirs: DeepseekOcr2ForConditionalGeneration, folder: Path):
    loaded = load_checkpoint(folder)
    assert isinstance(loaded.model, DeepseekOcr2Reader)
    assert (loaded.geometry, loaded.model_id, loaded.tokenizer.image_id) == (OCR2_GEOMETRY, folder.name, 3)
    pages = views(3, SIDE_PX)
    ids = prompt_ids(3 * VIEW_TOKENS + 1, 20, 21)
    pixels = normalise_views(pages, torch.float32)
    expected = theirs(ids, pixel_values=pixels[:1], pixel_values_local=pixels[1:], num_local_patches=[2]).logits
    images = {"global_views_BHWC": pages[:1], "tiles_THWC": pages[1:], "tile_grids_B2": [[2, 1]]}
    torch.testing.assert_close(loaded.model(ids, **images).logits, expected, rtol=1e-4, atol=1e-4)
    positions = torch.arange(ids.shape[1])[None]
    embeds = loaded.model.embed_inputs(ids, loaded.model.image_features(*images.values()))
    hidden, _ = loaded.model.decode(embeds, positions)
    torch.testing.assert_close(loaded.model.lm_head(hidden), expected, rtol=1e-4, atol=1e-4)
    tokens = loaded.model.generate(ids, **images, max_new_tokens=4, do_sample=False, suppress_tokens=[3])
    assert int(tokens[0, ids.shape[1]]) == int(expected[0, -1].index_fill(0, torch.tensor([3]), -torch.inf).argmax())


@torch.inference_mode()
def test_plans_count_the_tokens_that_pages_become(folder: Path):
    loaded = load_checkpoint(folder)
    plan = plan_views(1600, 700, Mode.GUNDAM, loaded.geometry)
    base_tokens = (plan.global_px // 64) ** 2
    page = loaded.model.assemble_page(
        torch.zeros(base_tokens, 24), torch.zeros(plan.num_tiles, VIEW_TOKENS, 24), plan.tile_columns, plan.tile_rows
    )
    assert plan.num_tiles == 2
    assert plan.num_vision_tokens == len(page)


def test_loading_v1_gives_tokenizer_and_geometry(tmp_path: Path):
    save_checkpoint(tiny_model(), tmp_path / "small")
    write_tokenizer(tmp_path / "small")
    loaded = load_checkpoint(tmp_path / "small")
    assert loaded.model_id == "small"
    assert loaded.geometry == tiny_model().config.geometry_config()
    assert (loaded.tokenizer.bos_id, loaded.tokenizer.image_id) == (0, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "missing files: model.safetensors"),
        ("model.safetensors", "torn", "header"),
        ("model.safetensors.index.json", "{}", "not an index"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "1.safetensors"}}', "missing files: 1.safetensors"),
    ],
)
def test_broken_files_are_named(folder: Path, tmp_path: Path, name: str, content: str | None, message: str):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / name).unlink(missing_ok=True)
    if content is not None:
        (broken / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(broken)


def test_missing_and_misshapen_tensors_are_named(folder: Path, tmp_path: Path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(
        tensors | {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)},
        broken / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"of another shape: lm_head\.weight, .*layers\.0\.mlp\.up_proj\.weight"):
        load_checkpoint(broken)


def test_other_models_are_refused_by_name(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    write_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="model_type 'llama'"):
        load_checkpoint(tmp_path)
