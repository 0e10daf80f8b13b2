"""Adapters in the engine, behind both runners: each page reads as with its adapter merged, whatever its company."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.gpu.decoder import GpuDecoder
from service.engine.kernels.reference import decoder as reference
from service.engine.lora.registry import AdapterError
from service.engine.protocol import SamplingParams, SequenceFailure, SequenceRequest
from shared.contract.prompts import Task, prompt_for
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.loading import load_checkpoint
from tests.support.lora import ATTENTION, merged, random_adapter
from tests.support.nano import NANO, needs_nano
from tests.unit.service.engine.gpu_tiny import paged_engine, paged_runner
from tests.unit.service.engine.test_engine import outcomes
from tests.unit.service.engine.test_engine_nano import page_of
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_model, tiny_request

MODEL = tiny_model()
NEVER = LoopRule(min_tokens=10_000)
RANKS = (1, 2, 3, 4, 5, 6, 7, 8)
FILES = {
    f"a{index}@1": random_adapter(MODEL, index, rank=rank, **({"targets": ATTENTION} if index % 3 == 2 else {}))
    for index, rank in enumerate(RANKS)
}
MAKERS = {"plain": tiny_engine, "paged": paged_engine}


def engine_of(make, loaded=FILES, **limits):
    engine = MAKERS[make](
        MODEL, **{"loop_rule": NEVER, "adapter_slots": 8, "adapter_max_rank": 8, "batch_size": 9, **limits}
    )
    for name in loaded:
        engine.load_adapter(name, FILES[name])
    return engine


def request_of(seed, model_id):
    width_px = (64, 128, 192)[seed % 3]
    return tiny_request(
        f"{model_id}-{seed}", seed=seed, width_px=width_px, max_new_tokens=6 + 7 * (seed % 4), model_id=model_id
    )


def read(engine, requests):
    for request in requests:
        engine.submit(request)
    return {name: result.text for name, result in outcomes(drain(engine)).items()}


ALONE = {}
"""Each page alone, read by the base with the adapter added to its weights."""
for index, name in enumerate(["tiny", *FILES]):
    model = merged(MODEL, FILES[name]) if name in FILES else MODEL
    for seed in (index, index + 1):
        engine = tiny_engine(model, loop_rule=NEVER)
        engine.submit(tiny_request(f"{name}-{seed}", seed=seed, width_px=(64, 128, 192)[seed % 3],
                                   max_new_tokens=6 + 7 * (seed % 4)))  # fmt: skip
        ALONE |= {found: result.text for found, result in outcomes(drain(engine)).items()}
REQUESTS = [request_of(seed, name) for index, name in enumerate(["tiny", *FILES]) for seed in (index, index + 1)]


def test_adapters_change_what_is_read():
    base = read(tiny_engine(MODEL, loop_rule=NEVER), [request_of(seed, "tiny") for seed in range(10)])
    assert sum(ALONE[f"a{index}@1-{index + 1}"] != base[f"tiny-{index + 1}"] for index in range(8)) >= 6


@pytest.mark.parametrize("make", MAKERS)
def test_eight_adapters_of_different_rank_and_the_base_in_one_batch(make):
    engine = engine_of(make, batch_size=18)
    assert read(engine, REQUESTS) == ALONE
    assert max(engine.stats().batch_sizes) >= 9


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    order=st.permutations(range(len(REQUESTS))),
    pauses=st.lists(st.integers(0, 4), min_size=len(REQUESTS), max_size=len(REQUESTS)),
    batch_size=st.integers(1, 9),
    slots=st.integers(2, 4),
    data=st.data(),
)
def test_adapters_come_and_go_in_random_company(make, order, pauses, batch_size, slots, data):
    """Few slots: an adapter is loaded when it is asked for, and the least lately used ones are sent away."""
    engine = engine_of(make, loaded=(), batch_size=batch_size, adapter_slots=slots)
    events = []

    def run(steps):
        for _ in range(steps):
            events.extend(engine.step())
            engine.check_integrity()

    for index, pause in zip(order, pauses, strict=True):
        request = REQUESTS[index]
        while request.model_id != "tiny" and engine.adapters.find(request.model_id) is None:
            try:
                engine.load_adapter(request.model_id, FILES[request.model_id])
            except AdapterError as error:
                if error.reason not in {"no_slot", "name_in_use"}:  # the latter while it drains
                    raise
                names = engine.adapters.names
                if names:
                    engine.unload_adapter(names[data.draw(st.integers(0, len(names) - 1))])
                run(1)
        engine.submit(request)
        run(pause)
    events.extend(drain(engine))
    assert {name: result.text for name, result in outcomes(events).items()} == ALONE


@pytest.mark.parametrize("make", MAKERS)
def test_second_attempts_keep_their_adapter(make):
    rule = LoopRule(min_tokens=12, min_repeats=3)
    requests = [
        tiny_request(f"p{seed}", seed=seed, width_px=128, max_new_tokens=60, model_id="a3@1") for seed in range(4)
    ]
    found = outcomes_of(engine_of(make, loop_rule=rule), requests)
    merged_engine = tiny_engine(merged(MODEL, FILES["a3@1"]), loop_rule=rule)
    expected = outcomes_of(
        merged_engine, [tiny_request(f"p{seed}", seed=seed, width_px=128, max_new_tokens=60) for seed in range(4)]
    )
    assert found == expected


def outcomes_of(engine, requests):
    for request in requests:
        engine.submit(request)
    return {name: (result.text, result.finish_reason) for name, result in outcomes(drain(engine)).items()}


@pytest.mark.parametrize("make", MAKERS)
def test_an_adapter_drains_before_its_slot_is_used_again(make):
    engine = engine_of(make, loaded=("a0@1",), adapter_slots=1)
    engine.submit(request_of(3, "a0@1"))
    engine.step()
    assert not engine.unload_adapter("a0@1")
    engine.submit(request_of(4, "a0@1"))
    with pytest.raises(AdapterError) as caught:
        engine.load_adapter("a1@1", FILES["a1@1"])
    assert caught.value.reason == "no_slot"
    found = outcomes(drain(engine))
    assert found["a0@1-4"].code == "model_not_found"
    assert found["a0@1-3"].text == read(engine_of(make), [request_of(3, "a0@1")])["a0@1-3"]
    engine.load_adapter("a1@1", FILES["a1@1"])
    assert read(engine, [REQUESTS[4]]) == {REQUESTS[4].sequence_id: ALONE[REQUESTS[4].sequence_id]}
    assert engine.unload_adapter("a1@1")


@pytest.mark.parametrize("make", MAKERS)
def test_a_cancelled_page_lets_its_adapter_go(make):
    engine = engine_of(make, loaded=("a0@1",))
    for seed in (0, 3):
        engine.submit(request_of(seed, "a0@1"))
    engine.step()
    assert not engine.unload_adapter("a0@1")
    engine.cancel("a0@1-0")
    engine.cancel("a0@1-3")
    engine.load_adapter("a0@1", FILES["a0@1"])
    assert engine.adapters.find("a0@1") is not None


def test_names_that_are_not_served():
    engine = engine_of("plain", loaded=("a0@1",))
    for name, reason in (("a0@1", "name_in_use"), ("tiny", "name_in_use")):
        with pytest.raises(AdapterError) as caught:
            engine.load_adapter(name, FILES["a0@1"])
        assert caught.value.reason == reason
    with pytest.raises(AdapterError, match="unknown_adapter"):
        engine.unload_adapter("a9@1")
    engine.submit(tiny_request("x", model_id="a0@2"))
    (failure,) = drain(engine)
    assert isinstance(failure, SequenceFailure)
    assert failure.code == "model_not_found"
    assert "a0@1" in failure.detail


def test_without_slots_nothing_is_loaded():
    engine = tiny_engine(MODEL)
    with pytest.raises(AdapterError, match="adapters_off"):
        engine.load_adapter("a0@1", FILES["a0@1"])


def test_the_base_alone_takes_the_way_it_takes_without_adapters(monkeypatch):
    engine = engine_of("paged")
    seen = []
    real = GpuDecoder.decode
    monkeypatch.setattr(
        GpuDecoder,
        "decode",
        lambda *args, **kwargs: seen.append(args[4]) or real(*args, **kwargs),
    )
    monkeypatch.setattr(reference, "lora_add", None)
    monkeypatch.setattr(reference, "mixture_lora", None)
    assert read(engine, [request_of(0, "tiny")])["tiny-0"] == ALONE["tiny-0"]
    assert seen
    assert set(seen) == {None}


@needs_nano
@pytest.mark.parametrize("way", MAKERS)
def test_nano_reads_as_with_the_adapter_merged(way):
    checkpoint = load_checkpoint(NANO)
    model, base = checkpoint.model, checkpoint.model_id
    # The paged runner reads whole views.
    limits = EngineLimits(batch_size=3, max_new_tokens=16, max_sequence_tokens=1024, skips_padding=False)
    files = {f"x@{seed}": random_adapter(model, seed, rank=16 - 5 * seed, strength=1.0) for seed in range(2)}

    def asked(name):
        return SequenceRequest(name, page_of("Invoice 2041"), prompt_for(Task.FREE), SamplingParams(16), name)

    texts = {}
    for name, alone in {base: model, **{name: merged(model, file) for name, file in files.items()}}.items():
        engine = make_engine(replace(checkpoint, model=alone), limits, model_id=name)
        texts |= read(engine, [asked(name)])
    limits = replace(limits, adapter_slots=2, adapter_max_rank=16)
    engine = make_engine(checkpoint, limits)
    if way == "paged":
        runner = paged_runner(model, limits, checkpoint.tokenizer.eos_id, block_tokens=64)
        engine = TorchEngine(runner, checkpoint.tokenizer, engine.info, limits)
    for name, file in files.items():
        engine.load_adapter(name, file)
    assert read(engine, [asked(name) for name in (*files, base)]) == texts
    assert len(set(texts.values())) == 3
