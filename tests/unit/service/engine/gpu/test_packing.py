"""A decoder's weights as the kernels take them: where they go, what they take, that 8-bit rows read the same."""

from dataclasses import fields

import pytest
import torch

from service.engine.config import EngineLimits, EngineSource, WeightForm
from service.engine.factory import load_engine
from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.factory import choose_weights
from service.engine.gpu.memory import GIB
from service.engine.gpu.packing import Packing
from service.engine.kernels.int8_rows import Int8Rows, in_full
from service.engine.kernels.reference import decoder as reference
from service.errors import EngineError
from shared.deepseek_ocr.checkpoint import load_model, save_checkpoint
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.public_config import config_to_public
from tests.support.lora import random_adapter
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.test_engine import outcomes
from tests.unit.service.engine.tiny import drain, tiny_model, tiny_request

META = torch.device("meta")


def num_bytes(weight: object) -> int:
    if isinstance(weight, Int8Rows):
        return weight.levels.nbytes + weight.scale.nbytes
    return weight.nbytes if isinstance(weight, torch.Tensor) else 0


def public_model() -> DeepseekOcrForConditionalGeneration:
    with META:
        return DeepseekOcrForConditionalGeneration(DeepseekOcrConfig()).bfloat16()


def test_public_weights_take_4_gb_as_rows_in_the_place_of_7():
    model = public_model()
    packing = Packing(META, is_int8=True, takes_adapters=False)
    packed = [packing.layer(layer) for layer in model.model.layers]
    rows = sum(num_bytes(getattr(layer, field.name)) for layer in packed for field in fields(layer))
    rows += num_bytes(packing.matrix(model.lm_head.weight))
    decoder = [*model.model.layers.parameters(), model.lm_head.weight]
    rest = sum(parameter.nbytes for parameter in model.parameters()) - sum(weight.nbytes for weight in decoder)
    assert sum(parameter.nbytes for parameter in model.parameters()) == pytest.approx(6.67e9, rel=0.01)
    assert rows + rest == pytest.approx(3.92e9, rel=0.01)


def rounded(model: DeepseekOcrForConditionalGeneration) -> DeepseekOcrForConditionalGeneration:
    """The model whose matrices are what their rows mean."""
    model.lm_head.weight.data = in_full(as_rows(model.lm_head.weight), torch.float32)
    for layer in model.model.layers:
        for name, parameter in layer.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gate.weight"):
                parameter.data = in_full(as_rows(parameter), torch.float32)
    return model


def as_rows(weight: torch.Tensor) -> Int8Rows:
    rows = Packing(torch.device("cpu"), is_int8=True, takes_adapters=False).matrix(weight)
    assert isinstance(rows, Int8Rows)
    return rows


def read(engine, names) -> dict[str, str]:
    for seed, name in enumerate(names):
        engine.submit(tiny_request(f"{name}-{seed}", seed=seed, max_new_tokens=24, model_id=name))
    return {name: result.text for name, result in outcomes(drain(engine)).items()}


def test_pages_and_adapters_are_read_as_by_the_model_that_the_rows_mean():
    files = {
        f"a{index}@1": random_adapter(tiny_model(), index, rank=3, experts=("", "stacked")[index]) for index in range(2)
    }
    names = ["tiny", *files, "tiny"]
    limits = {"adapter_slots": 2, "adapter_max_rank": 4, "adapter_experts": True}
    texts = []
    for model, weights in ((tiny_model(), WeightForm.INT8), (rounded(tiny_model()), WeightForm.FULL)):
        engine = paged_engine(model, weights=weights, **limits)
        for name, file in files.items():
            engine.load_adapter(name, file)
        texts.append(read(engine, names))
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == len(names)


def test_a_model_that_gave_its_decoder_up_still_says_where_and_what_it_is():
    model = tiny_model()
    GpuDecoder(model, reference, max_positions=64, takes_over=True, is_int8=True)
    assert (len(model.lm_head.weight), model.lm_head.weight.dtype) == (0, torch.float32)
    assert model.lm_head.weight.device.type == "cpu"
    assert not list(model.model.layers.parameters())


def test_layers_can_wait_elsewhere_than_the_rest(tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    places = {
        name: str(parameter.device)
        for name, parameter in load_model(tmp_path, META, layers_device="cpu").named_parameters()
    }
    assert {name.startswith("model.layers.") for name, place in places.items() if place == "cpu"} == {True}
    assert {name.startswith("model.layers.") for name, place in places.items() if place == "meta"} == {False}


@pytest.fixture
def public_folder(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(config_to_public(DeepseekOcrConfig())))
    return tmp_path


@pytest.mark.parametrize(
    ("card_gib", "asked", "expected"),
    [
        (79.2, "auto", "full"),
        (11.6, "auto", "full"),
        (7.6, "auto", "int8"),
        (7.6, "full", "full"),
        (79.2, "int8", "int8"),
    ],
)
def test_weights_are_full_where_they_fit(public_folder, monkeypatch, card_gib, asked, expected):
    total = int(card_gib * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - GIB // 2, total))
    limits = EngineLimits(batch_size=8, weights=WeightForm(asked))
    assert choose_weights(public_folder, "cuda", torch.bfloat16, limits) == WeightForm(expected)


def test_an_engine_without_a_gpu_has_no_8_bit_weights(tmp_path):
    from tests.support.nano import NANO

    with pytest.raises(EngineError, match="8-bit"):
        load_engine(EngineSource(str(NANO), limits=EngineLimits(weights=WeightForm.INT8)))
