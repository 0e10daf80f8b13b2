"""DeepSeek-OCR-2 in the engine, behind both runners, against transformers' own class on a CPU."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from service.engine.config import EngineLimits, EngineSource
from service.engine.cpu.runner import CpuRunner
from service.engine.engine import TorchEngine
from service.engine.factory import load_engine, make_engine
from service.engine.lora.files import AdapterFiles
from service.engine.lora.registry import AdapterError
from service.engine.protocol import EngineInfo, SamplingParams, SequenceRequest
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.loading import LoadedCheckpoint
from shared.deepseek_ocr.ocr2 import OCR2_GEOMETRY
from tests.support.interpreter import relative_error
from tests.support.ocr2 import (
    PAGES,
    engine_logits,
    forced_logits,
    in_type,
    lora_of,
    noise_page,
    numbered_tokenizer,
    reader_of,
    text_of,
    their_logits,
    tiny_ocr2,
    write_ocr2,
)
from tests.unit.service.engine.gpu_tiny import paged_runner
from tests.unit.service.engine.test_engine import outcomes
from tests.unit.service.engine.tiny import PROMPT, drain, tiny_tokenizer

TOKENIZER = numbered_tokenizer()
NEVER = LoopRule(min_tokens=10_000)
LIMITS = EngineLimits(batch_size=4, max_new_tokens=32, max_sequence_tokens=1300, loop_rule=NEVER)
ADAPTER_LIMITS = replace(LIMITS, adapter_slots=3, adapter_max_rank=8)


def engine_of(kind: str, model, limits: EngineLimits = LIMITS) -> TorchEngine:
    if kind == "plain":
        return make_engine(LoadedCheckpoint(model, TOKENIZER, OCR2_GEOMETRY, "ocr2"), limits)
    info = EngineInfo("ocr2", "cpu", "float32", OCR2_GEOMETRY, limits.max_new_tokens, 1300, limits.batch_size)
    return TorchEngine(paged_runner(model, limits, TOKENIZER.eos_id), TOKENIZER, info, limits)


def request_of(size: str, seed: int, model_id: str = "ocr2", tokens: int = 14) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=f"{model_id} {size} {seed}",
        page=noise_page(size, seed),
        prompt=PROMPT,
        params=SamplingParams(tokens),
        model_id=model_id,
    )


def read(engine: TorchEngine, requests) -> dict[str, str]:
    for request in requests:
        engine.submit(request)
    return {name: result.text for name, result in outcomes(drain(engine)).items()}


def answer_of(theirs, request: SequenceRequest) -> str:
    ids = TOKENIZER.encode_prompt(request.page.plan, request.prompt)
    return text_of(their_logits(theirs, request.page, ids, request.params.max_new_tokens)[0])


@pytest.mark.parametrize(
    ("seed", "sizes"), [(0, tuple(PAGES)), (1, ("no tiles", "two tiles")), (2, ("two tiles", "no tiles"))]
)
def test_pages_read_together_have_the_tokens_of_transformers(seed: int, sizes: tuple[str, ...]):
    theirs = tiny_ocr2(seed)
    requests = [request_of(size, 10 * seed + number) for number, size in enumerate(sizes)]
    expected = {request.sequence_id: answer_of(theirs, request) for request in requests}
    assert len(set(expected.values())) == len(sizes)
    assert read(engine_of("plain", reader_of(theirs)), requests) == expected
    assert read(engine_of("paged", reader_of(theirs)), requests) == expected


@pytest.mark.parametrize("kind", ["plain", "paged"])
def test_adapters_of_peft_and_the_base_in_one_batch_have_its_tokens(kind: str):
    adapters = {f"a{index}@1": lora_of(tiny_ocr2(), index, rank) for index, rank in enumerate((2, 8))}
    engine = engine_of(kind, reader_of(tiny_ocr2()), ADAPTER_LIMITS)
    for name, (files, _) in adapters.items():
        engine.load_adapter(name, files)
    models = {"ocr2": tiny_ocr2()} | {name: model for name, (_, model) in adapters.items()}
    requests = [request_of("no tiles", 5, name) for name in models]
    expected = {request.sequence_id: answer_of(models[request.model_id], request) for request in requests}
    assert len(set(expected.values())) == 3
    assert read(engine, requests) == expected


@torch.inference_mode()
def test_logits_with_an_adapter_are_those_of_peft():
    files, theirs = lora_of(tiny_ocr2(), 3, 4)
    request = request_of("two tiles", 1)
    ids = TOKENIZER.encode_prompt(request.page.plan, PROMPT)
    tokens, expected = their_logits(theirs, request.page, ids, 4)
    engine = engine_of("plain", reader_of(tiny_ocr2()), ADAPTER_LIMITS)
    engine.load_adapter("a@1", files)
    found = []
    choose = CpuRunner._choose

    def note(runner, logits, *more):
        found.append(logits[0].clone())
        return choose(runner, logits, *more)

    with mock.patch.object(CpuRunner, "_choose", note):
        assert read(engine, [replace(request, model_id="a@1", params=SamplingParams(4))])
    assert len(found) == len(tokens)
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-3, atol=1e-3)


def test_logits_in_bfloat16_are_as_near_to_float32_as_those_of_transformers():
    theirs = tiny_ocr2(2)
    page, name = noise_page("six tiles", 2), "ocr2"
    ids = TOKENIZER.encode_prompt(page.plan, PROMPT)
    engine = engine_of("paged", in_type(reader_of(theirs), "cpu", torch.bfloat16))
    ((tokens, found),) = engine_logits(engine, [(page, name)], 4)
    exact = forced_logits(in_type(theirs, "cpu", torch.float32), page, ids, tokens)
    same_type = forced_logits(in_type(theirs, "cpu", torch.bfloat16), page, ids, tokens)
    assert relative_error(found, exact) < relative_error(same_type, exact) + 0.02


def test_an_adapter_with_the_names_of_the_public_code_reads_the_same():
    files, _ = lora_of(tiny_ocr2(), 0, 2)
    public = {name.replace(".language_model.", "."): tensor for name, tensor in files.tensors.items()}
    engine = engine_of("plain", reader_of(tiny_ocr2()), ADAPTER_LIMITS)
    engine.load_adapter("own@1", files)
    engine.load_adapter("public@1", replace(files, tensors=public))
    texts = read(engine, [request_of("no tiles", 5, name) for name in ("ocr2", "own@1", "public@1")])
    base, own, from_public = texts.values()
    assert own == from_public != base


@pytest.fixture(scope="module")
def an_adapter() -> AdapterFiles:
    return lora_of(tiny_ocr2(), 0, 2)[0]


@pytest.fixture(scope="module", params=["plain", "paged"])
def an_engine(request: pytest.FixtureRequest) -> TorchEngine:
    return engine_of(request.param, reader_of(tiny_ocr2()), ADAPTER_LIMITS)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("language_model.layers", "vision_tower.vision_encoder.layers", "target_not_allowed"),
        ("language_model.layers", "vision_tower.sam_encoder.layers", "target_not_allowed"),
        ("language_model.layers", "decoder.layers", "target_not_allowed"),
        ("layers.2", "layers.3", "unknown_module"),
        ("layers.1.mlp.shared_experts.", "layers.1.mlp.", "unknown_module"),
        ("layers.1.mlp.shared_experts.", "layers.1.mlp.experts.0.", "target_not_allowed"),
        ("layers.0.mlp.gate_proj", "layers.1.mlp.shared_experts.gate_proj", "wrong_shape"),
    ],
)
def test_adapters_of_other_modules_or_shapes_are_refused(
    an_adapter: AdapterFiles, an_engine: TorchEngine, old: str, new: str, reason: str
):
    other = {name.replace(old, new): tensor for name, tensor in an_adapter.tensors.items() if old in name}
    with pytest.raises(AdapterError) as caught:
        an_engine.load_adapter("other@1", replace(an_adapter, tensors=other))
    assert caught.value.reason == reason


def test_a_checkpoint_is_loaded_with_slots_for_adapters(tmp_path):
    theirs = tiny_ocr2()
    engine = load_engine(EngineSource(str(write_ocr2(tmp_path, theirs)), limits=ADAPTER_LIMITS))
    assert (engine.info.family, engine.info.adapter_slots, engine.info.geometry) == ("DeepSeek-OCR-2", 3, OCR2_GEOMETRY)
    request = request_of("no tiles", 0, tmp_path.name, tokens=6)
    tokenizer = tiny_tokenizer()
    tokens, _ = their_logits(theirs, request.page, tokenizer.encode_prompt(request.page.plan, PROMPT), 6)
    assert list(read(engine, [request]).values()) == [tokenizer.decode(tokens)]
