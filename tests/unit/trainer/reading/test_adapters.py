"""Adapters on a loaded model: they read as if they were part of its weights, and nothing of them is lost quietly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.contract.refusals import ADVICE
from tests.support.adapters import REFUSED_CONFIGS
from tests.support.lora import merged, random_adapter, write_files
from tests.support.ocr2 import lora_of, reader_of, tiny_ocr2
from tests.support.tiny_model import tiny_model
from trainer.reading.adapters import AdapterError, attach_adapter, read_adapter


@pytest.fixture
def files():
    return random_adapter(tiny_model(), seed=1)


@pytest.fixture
def folder(tmp_path, files):
    """A PEFT folder on disk."""
    return write_files(tmp_path / "trained", files)


@torch.no_grad()
def logits(model):
    ids = torch.tensor([[0, 5, 6, 7, 8, 9]])
    hidden, _ = model.decode(model.embed_inputs(ids, []), torch.arange(6)[None], None, None)
    return model.lm_head(hidden)


def test_an_attached_adapter_reads_as_one_in_the_weights_and_can_be_left_out(folder, files):
    model = tiny_model()
    before = logits(model)
    attached = attach_adapter(model, folder)
    assert attached.model is model
    assert torch.allclose(logits(attached.model), logits(merged(tiny_model(), files)), atol=1e-4)
    assert not torch.allclose(logits(attached.model), before, atol=1e-2)
    with attached.base_alone() as base:
        assert torch.equal(logits(base), before)
    assert not any(weights.requires_grad for weights in model.parameters())


def test_the_adapter_takes_the_models_number_type(folder):
    attached = attach_adapter(tiny_model().to(torch.bfloat16), folder)
    kinds = {weights.dtype for name, weights in attached.model.named_parameters() if "lora_" in name}
    assert kinds == {torch.bfloat16}


def test_what_peft_saved_with_its_own_options_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    pattern = r".*self_attn\.(q_proj|o_proj)"
    options = {"use_rslora": True, "lora_dropout": 0.1, "init_lora_weights": False}
    trained = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=6, target_modules=pattern, **options))
    trained.eval().save_pretrained(str(tmp_path / "saved"))
    attached = attach_adapter(tiny_model(), tmp_path / "saved")
    assert torch.allclose(logits(attached.model), logits(trained.get_base_model()), atol=1e-5)


def test_an_adapter_of_deepseek_ocr_2_reads_as_the_model_that_it_was_trained_on(tmp_path):
    files, trained = lora_of(tiny_ocr2(), 0, 4)
    model = reader_of(tiny_ocr2())
    before = logits(model)
    attached = attach_adapter(model, write_files(tmp_path / "trained", files))
    reference = trained(input_ids=torch.tensor([[0, 5, 6, 7, 8, 9]])).logits
    assert torch.allclose(logits(attached.model), reference, atol=1e-4)
    assert not torch.allclose(logits(attached.model), before, atol=1e-2)


def broken_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, path)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), r"has no adapter_config\.json"),
        (lambda folder: broken_config(folder, init_lora_weights="pissa_niter_4"), "changes the base model"),
        (lambda folder: broken_config(folder, r=8), "different ranks"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"torn"), "cannot be read"),
        (lambda folder: other_tensors(folder, lambda all: {}), "no LoRA matrices"),
        (lambda folder: other_tensors(folder, lambda all: all | {f"{Q}.lora_A.weight": torch.ones(4, 31)}),
         r"31 .*\[shape_mismatch\]"),
        (lambda folder: other_tensors(folder, lambda all: all | {f"{Q}.lora_A.weight": torch.full((4, 32), torch.nan)}),
         "NaN"),
        (lambda folder: other_tensors(folder, lambda all: all | {"base_model.model.lm_head.bias": torch.ones(3)}),
         r"lm_head\.bias'; save the LoRA alone"),
        (lambda folder: other_tensors(
            folder, lambda all: {name: tensor for name, tensor in all.items() if name != f"{Q}.lora_B.weight"}),
         "only one of the two"),
        (lambda folder: other_tensors(
            folder, lambda all: {name.replace("layers.1", "layers.9"): tensor for name, tensor in all.items()}),
         r"not in the base model: model\.layers\.9.*\[module_unknown\]"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_adapter_for_the_model_is_refused(folder, spoil, message):
    spoil(folder)
    model = tiny_model()
    with pytest.raises(AdapterError, match=message):
        attach_adapter(model, folder)
    assert torch.equal(logits(model), logits(tiny_model()))


@pytest.mark.parametrize(("data", "reason"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_a_config_that_the_contract_refuses_is_refused_with_its_code_and_advice(folder, data, reason):
    (folder / "adapter_config.json").write_bytes(data)
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    assert f": {reason}: " in str(caught.value)
    assert str(caught.value).endswith(ADVICE[reason][1])


def test_a_missing_folder_is_said_with_what_to_give(tmp_path):
    with pytest.raises(AdapterError, match="RUN/best"):
        read_adapter(tmp_path / "none")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(AdapterError, match="save it as safetensors"):
        read_adapter(tmp_path)
