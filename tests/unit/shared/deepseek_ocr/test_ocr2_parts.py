"""Our modules over transformers' DeepSeek-OCR-2: the same parameters, and only configurations that they mean."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.deepseek_ocr.checkpoint import CheckpointError, read_config
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.ocr2 import load_ocr2, skeleton
from shared.deepseek_ocr.ocr2_parts import native_sam, text_config
from shared.deepseek_ocr.public_config import ConfigError
from tests.support.ocr2 import reader_of, tiny_config, tiny_ocr2, write_ocr2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ocr2(tmp_path_factory.mktemp("ocr2"), tiny_ocr2())


def test_parts_follow_the_model_and_hold_no_weights_of_their_own():
    model = reader_of(tiny_ocr2())
    decoder, sam = model.decoder, native_sam(model)
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for part in (decoder.layers, sam) for parameter in part.parameters()} <= own
    model.to(torch.float64)
    assert {parameter.dtype for parameter in decoder.layers.parameters()} == {torch.float64}
    assert len(model.state_dict()) == len(tiny_ocr2().state_dict())


def test_layers_that_are_released_leave_no_weights_behind():
    model = reader_of(tiny_ocr2())
    decoder = model.decoder
    for index in range(len(decoder.layers)):
        decoder.release(index)
    assert not list(decoder.layers.parameters())
    assert not [name for name, _ in model.named_parameters() if name.startswith("model.language_model.layers.")]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"topk_method": "group_limited_greedy"}, "topk_method"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "rope_type"),
    ],
)
def test_other_decoders_are_refused_by_name(folder: Path, tmp_path: Path, change: dict[str, object], named: str):
    with pytest.raises(ConfigError, match=named):
        text_config(tiny_config(**change))
    values = read_config(folder)
    (tmp_path / "config.json").write_text(json.dumps(values | {"text_config": values["text_config"] | change}))
    with pytest.raises(CheckpointError, match=named):
        load_ocr2(tmp_path, "cpu", torch.float32)


def test_a_missing_tensor_is_an_error_that_names_it(folder: Path, tmp_path: Path):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.q_proj.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    for other in ("config.json", "tokenizer.json"):
        (tmp_path / other).write_bytes((folder / other).read_bytes())
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        load_checkpoint(tmp_path)


def test_the_skeleton_has_the_size_of_the_model_and_no_memory(folder: Path):
    model = skeleton(read_config(folder))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny_ocr2().parameters())
    assert model.decoder.config.n_routed_experts == 4
