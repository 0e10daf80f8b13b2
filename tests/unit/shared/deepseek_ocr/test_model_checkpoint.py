import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.deepseek_ocr.checkpoint import CheckpointError, load_model, save_checkpoint
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY, nano_config
from shared.deepseek_ocr.public_config import ConfigError, config_from_public, config_to_public
from shared.deepseek_ocr.quantisation import dequantise_rows, quantise_rows
from tests.unit.shared.deepseek_ocr.tiny_models import prompt_ids, tiny_config, tiny_model, views

EXPERT_KEY = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path):
    save_checkpoint(tiny_model(), tmp_path, storage="float32")
    return tmp_path


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_float32_comes_back_bit_for_bit(folder: Path):
    saved, loaded = tiny_model().state_dict(), load_model(folder).state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_files_hold_a_tensor_for_each_expert(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors[EXPERT_KEY], tiny_model().model.layers[1].mlp.experts.gate_up_proj[2, 12:])


def test_shards_with_an_index_load(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    (folder / "model.safetensors").unlink()
    weight_map = {key: name for name, keys in halves.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_model(folder).lm_head.weight, tiny_model().lm_head.weight)


def test_dtype_is_what_was_asked_for(folder: Path):
    assert {parameter.dtype for parameter in load_model(folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_int8_rows_are_off_by_half_a_step_at_most():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(40, 64, generator=generator) * torch.logspace(-9, 3, 40).unsqueeze(1)
    values, scale = quantise_rows(rows)
    error = (dequantise_rows(values, scale) - rows).abs()
    assert bool((error <= 0.5001 * scale.float().unsqueeze(1)).all())
    # Where float16 scales are normal numbers, a step is one part in 127 of the row's largest value.
    normal = rows.abs().amax(dim=1) > 0.02
    assert bool((scale.float()[normal] <= 1.002 * rows[normal].abs().amax(dim=1) / 127).all())


def test_int8_checkpoint_answers_nearly_alike_in_a_quarter_of_the_space(tmp_path: Path):
    model = tiny_model()
    save_checkpoint(model, tmp_path / "float32", storage="float32")
    save_checkpoint(model, tmp_path / "int8", storage="int8")
    loaded = load_model(tmp_path / "int8")
    images = {"global_views_BHWC": views(1)}
    ids = prompt_ids(13, 9, 8, 7)
    with torch.inference_mode():
        exact, near = model(ids, **images).logits, loaded(ids, **images).logits
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.15
    for (name, saved), stored in zip(model.named_parameters(), loaded.parameters(), strict=True):
        # No row has a larger value than its tensor, so half a step of the largest bounds them all.
        assert float((stored - saved).detach().abs().max()) <= 0.502 * float(saved.detach().abs().max()) / 127, name
    keys = load_file(tmp_path / "int8" / "model.safetensors")
    matrices = [name for name, tensor in keys.items() if tensor.dtype == torch.int8]
    assert EXPERT_KEY in matrices
    assert all(f"{name}_scale" in keys for name in matrices)
    assert "model.layers.1.mlp.gate.weight" not in matrices


def test_missing_and_unknown_tensors_are_named(folder: Path):
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.surprise"] = tensors.pop(EXPERT_KEY)

    edit_weights(folder, edit)
    with pytest.raises(CheckpointError, match=rf"missing tensors: {EXPERT_KEY}; unknown tensors: model\.surprise"):
        load_model(folder)


def test_wrong_shape_is_named(folder: Path):
    edit_weights(folder, lambda tensors: tensors.update({EXPERT_KEY: torch.zeros(5, 24)}))
    with pytest.raises(CheckpointError, match=rf"{EXPERT_KEY} has shape \[5, 24\].*\[12, 24\]"):
        load_model(folder)


def test_tensors_that_public_files_carry_for_nothing_are_ignored(folder: Path):
    unused = {
        "model.vision_model.embeddings.patch_embedding.weight": torch.zeros(1),
        "model.vision_model.embeddings.position_ids": torch.zeros(1),
    }
    edit_weights(folder, lambda tensors: tensors.update(unused))
    load_model(folder)


def test_int8_without_scale_is_an_error(folder: Path):
    edit_weights(folder, lambda tensors: tensors.update({EXPERT_KEY: torch.zeros(12, 24, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_scale"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json does not exist"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "JSON object"),
        ("config.json", '{"model_type": "llama"}', "model_type is 'llama'"),
        ("config.json", '{"model_type": "deepseek_vl_v2"}', "language_config is missing"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", "torn", "model.safetensors"),
        ("model.safetensors.index.json", "{}", "not an index"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "1.safetensors"}}', "missing files: 1.safetensors"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, content: str | None, message: str):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_the_layout_of_deepseek_ocr_2s_own_code_is_told_from_v1(folder: Path):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["DeepseekOCR2ForCausalLM"]}))
    with pytest.raises(CheckpointError, match="take the layout of transformers"):
        load_model(folder)


@pytest.mark.parametrize("make", [tiny_config, nano_config])
def test_config_survives_the_public_file(make: Callable[[], DeepseekOcrConfig]):
    config = make()
    again = config_from_public(json.loads(json.dumps(config_to_public(config))))
    assert again.to_dict() == config.to_dict()
    assert config_to_public(again) == config_to_public(config)


def test_nano_keeps_its_geometry():
    assert config_from_public(config_to_public(nano_config())).geometry_config() == NANO_GEOMETRY


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_mla", True), ("topk_method", "noaux_tc"), ("scoring_func", "sigmoid"), ("num_key_value_heads", 1)],
)
def test_decoders_of_another_kind_are_refused(name: str, value: object):
    public = config_to_public(tiny_config())
    public["language_config"][name] = value
    with pytest.raises(ConfigError, match=name):
        config_from_public(public)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("sam_vit_b", "stem_channels", [4, 4], "patches of 4 px"),
        ("sam_vit_b", "heads", 5, "multiple of 5"),
        ("sam_vit_b", "downsample_strides", [2, 2], "geometry"),
        ("sam_vit_b", "downsample_channels", [12, 16], "end in 16"),
        ("clip-l-14-224", "depth", 3, "unknown values: depth"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(part: str, name: str, value: object, message: str):
    public = config_to_public(tiny_config())
    public["vision_config"]["width"][part][name] = value
    with pytest.raises(ConfigError, match=message):
        config_from_public(public)


def test_loading_says_what_is_not_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match="neither a folder nor a repository"):
        load_checkpoint(str(tmp_path / "absent" / "folder"))
    save_checkpoint(tiny_model(), tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        load_checkpoint(tmp_path)
