"""Merged checkpoints: the arithmetic, the files, and the check that refuses what reads differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.deepseek_ocr.checkpoint import INDEX_FILE, CheckpointError, load_model, save_checkpoint
from shared.deepseek_ocr.draft_head import DraftHead, save_draft_head
from shared.deepseek_ocr.ocr2 import load_ocr2
from tests.support.lora import merged as merged_by_hand
from tests.support.lora import random_adapter, write_files
from tests.support.tiny_model import tiny_model
from tests.unit.shared.deepseek_ocr.test_model_ocr2 import theirs  # noqa: F401 - a fixture
from trainer.evaluation.samples import Layout, Sample
from trainer.evaluation.scores import Reading
from trainer.publishing.agreement import MergeError, compare_readings, require_agreement
from trainer.publishing.merging import write_merged
from trainer.reading.adapters import read_adapter


@pytest.fixture
def adapter(tmp_path):
    return read_adapter(write_files(tmp_path / "adapter", random_adapter(tiny_model(), seed=1)))


def write_shards(base: Path) -> None:
    """Split a checkpoint's file into two with an index, as large public ones are."""
    tensors = load_file(base / "model.safetensors")
    keys = sorted(tensors)
    places = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, base / name)
        places |= dict.fromkeys(part, name)
    (base / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (base / "model.safetensors").unlink()


def test_merged_weights_are_those_of_base_and_adapter_and_nothing_else_changes(tmp_path, adapter):
    save_checkpoint(tiny_model(), tmp_path / "base", "float32")
    merged = write_merged(tmp_path / "base", adapter, tmp_path / "merged")
    assert (merged.modules, merged.dtype) == (len(adapter.modules), "float32")
    assert merged.rounding_ratio < 1e-5
    wanted = merged_by_hand(tiny_model(), random_adapter(tiny_model(), seed=1)).state_dict()
    found = load_model(tmp_path / "merged").state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert before.keys() == after.keys()
    changed = {key.removesuffix(".weight") for key in before if not torch.equal(before[key], after[key])}
    assert changed == set(adapter.modules)


@pytest.mark.parametrize(("storage", "dtype", "stored"), [
    ("int8", None, "float32"), ("bfloat16", None, "bfloat16"), ("bfloat16", "float32", "float32"),
    ("float32", "bfloat16", "bfloat16"),
])  # fmt: skip
def test_weights_keep_the_bases_type_unless_another_is_named(tmp_path, adapter, storage, dtype, stored):
    save_checkpoint(tiny_model(), tmp_path / "base", storage)
    merged = write_merged(tmp_path / "base", adapter, tmp_path / "merged", dtype)
    assert merged.dtype == stored
    assert (merged.rounding_ratio > 1e-4) == (stored == "bfloat16"), "what rounding costs is stated"
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert not [key for key, tensor in tensors.items() if key.endswith("_scale") or tensor.dtype == torch.int8]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == stored
    load_model(tmp_path / "merged")


def test_shards_stay_shards_and_companions_come_along(tmp_path, adapter):
    base = tmp_path / "base"
    save_checkpoint(tiny_model(), base, "bfloat16")
    write_shards(base)
    for name in ("tokenizer.json", "modeling_deepseekocr.py", "processor_config.json", "README.md", "calibration.json"):
        (base / name).write_text(name)
    write_merged(base, adapter, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {path.name for path in base.iterdir()} - {"README.md", "calibration.json"}
    index = json.loads((tmp_path / "merged" / INDEX_FILE).read_text())
    assert index["weight_map"] == json.loads((base / INDEX_FILE).read_text())["weight_map"]
    (tmp_path / "merged" / "tokenizer.json").unlink()
    load_model(tmp_path / "merged")


def test_a_base_without_one_of_its_shards_is_not_merged(tmp_path, adapter):
    base = tmp_path / "base"
    save_checkpoint(tiny_model(), base, "bfloat16")
    write_shards(base)
    last = "model-00002-of-00002.safetensors"
    (base / last).unlink()
    with pytest.raises(CheckpointError, match=f"missing files: {last}"):
        write_merged(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_other_weights_in_the_folder_are_left_out(tmp_path, adapter):
    base = tmp_path / "base"
    save_checkpoint(tiny_model(), base, "bfloat16")
    save_draft_head(DraftHead(32, 1e-6), base)
    write_merged(base, adapter, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_model_of_transformers_is_merged_under_its_files_names(tmp_path, theirs):  # noqa: F811 - the fixture
    theirs.save_pretrained(tmp_path / "base")
    names = [f"model.language_model.layers.{layer}.self_attn.{each}_proj" for layer in (0, 1) for each in "qv"]
    generator = torch.Generator().manual_seed(0)
    shapes = {name: theirs.get_submodule(name).weight.shape for name in names}
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, inputs, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator)
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": names}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    merged = write_merged(tmp_path / "base", read_adapter(tmp_path / "adapter"), tmp_path / "merged")
    assert merged.modules == len(names)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert before.keys() == after.keys()
    assert len([key for key in before if not torch.equal(before[key], after[key])]) == len(names)
    model = load_ocr2(tmp_path / "merged", "cpu", torch.float32)
    for name in names:
        change = (
            2.0 * tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]
        )
        torch.testing.assert_close(model.get_submodule(name).weight, theirs.get_submodule(name).weight + change)


def test_an_adapter_of_another_model_is_refused(tmp_path, adapter):
    save_checkpoint(tiny_model(), tmp_path / "base", "float32")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    name = next(iter(adapter.modules))
    save_file({key: tensor for key, tensor in tensors.items() if key != f"{name}.weight"},
              tmp_path / "base" / "model.safetensors")  # fmt: skip
    with pytest.raises(MergeError, match=r"name the base model .* \[module_unknown\]"):
        write_merged(tmp_path / "base", adapter, tmp_path / "a")
    save_file(tensors | {f"{name}.weight": torch.zeros(3, 3)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(MergeError) as caught:
        write_merged(tmp_path / "base", adapter, tmp_path / "b")
    assert caught.value.code == "shape_mismatch"


def test_weights_that_overflow_are_refused(tmp_path, adapter):
    save_checkpoint(tiny_model(), tmp_path / "base", "float32")
    down, up = adapter.modules[next(iter(adapter.modules))]
    down.mul_(1e3)
    up.mul_(1e4)
    with pytest.raises(MergeError, match=r"--dtype float32 \[not_finite\]"):
        write_merged(tmp_path / "base", adapter, tmp_path / "merged", "float16")


def compared(truths, adapted, merged):
    samples = [Sample(f"{place}", "all", Layout.LINE, Path("x.png"), truth) for place, truth in enumerate(truths)]
    return compare_readings(samples, [Reading(text, 0.1) for text in adapted], [Reading(text, 0.1) for text in merged])


def test_texts_are_compared_and_not_only_error_rates():
    agreement = compared(["abcd", "efgh"], ["abcx", "efgh"], ["xbcd", "efgh"])
    assert (agreement.pages, agreement.equal_pages) == (2, 1)
    assert (agreement.adapter_cer, agreement.merged_cer, agreement.difference) == (1 / 8, 1 / 8, 2 / 8)
    require_agreement(agreement, max_difference=0.25, max_cer_loss=0.0)
    with pytest.raises(MergeError) as caught:
        require_agreement(agreement, max_difference=0.2, max_cer_loss=0.0)
    assert caught.value.code == "merge_differs"


def test_a_checkpoint_that_reads_worse_is_refused():
    agreement = compared(["a" * 99 + "b"], ["a" * 99 + "b"], ["a" * 100])
    with pytest.raises(MergeError, match=r"CER 0\.00% with the adapter, 1\.00% merged") as caught:
        require_agreement(agreement, max_difference=0.01, max_cer_loss=0.001)
    assert caught.value.code == "merge_worse"
