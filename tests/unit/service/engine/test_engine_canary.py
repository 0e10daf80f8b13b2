"""Canary pages in the engine: they go before all that wait, and their views are encoded once."""

import pytest

from service.engine.protocol import SequenceResult
from shared.contract.repetition import LoopRule
from tests.support.lora import random_adapter
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.test_engine import outcomes
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_model, tiny_request

MODEL = tiny_model()
FILES = {f"a@{seed}": random_adapter(MODEL, seed, rank=4) for seed in (1, 2)}
MAKERS = {"plain": tiny_engine, "paged": paged_engine}


def engine_of(make="plain", **limits):
    values = {"loop_rule": LoopRule(min_tokens=10_000), "adapter_slots": 2, "adapter_max_rank": 4, **limits}
    engine = MAKERS[make](MODEL, **values)
    for name, files in FILES.items():
        engine.load_adapter(name, files)
    return engine


def canary(name, model_id="tiny", **changes):
    return tiny_request(name, seed=99, width_px=128, max_new_tokens=8, model_id=model_id, is_canary=True, **changes)


def read(engine, request):
    engine.submit(request)
    return outcomes(drain(engine))[request.sequence_id]


@pytest.fixture
def count_views(monkeypatch):
    """How many views an engine has encoded since this was called."""

    def watch(engine):
        counts = []
        encode = engine._runner.encode
        monkeypatch.setattr(engine._runner, "encode", lambda views: counts.append(len(views)) or encode(views))
        return counts

    return watch


@pytest.mark.parametrize("make", MAKERS)
def test_canaries_of_all_adapters_read_what_an_ordinary_page_reads_and_are_encoded_once(make, count_views):
    ordinary = {name: read(engine_of(make), tiny_request("a", seed=99, width_px=128, max_new_tokens=8, model_id=name))
                for name in ("tiny", *FILES)}  # fmt: skip
    assert len({result.text for result in ordinary.values()}) == 3
    engine = engine_of(make)
    counts = count_views(engine)
    for name, expected in (*ordinary.items(), *ordinary.items()):
        result = read(engine, canary(f"{name}-{len(counts)}", name))
        assert (result.text, result.vision_tokens) == (expected.text, expected.vision_tokens)
        assert all(seconds >= 0 for seconds in (result.timings.queue_s, result.timings.encode_s))
        assert sum(counts) == 3


def test_another_canary_page_is_encoded_anew(count_views):
    engine = engine_of()
    counts = count_views(engine)
    read(engine, canary("a"))
    other = tiny_request("b", seed=98, width_px=128, max_new_tokens=8)
    expected = read(engine_of(), other)
    assert (
        read(engine, tiny_request("b", seed=98, width_px=128, max_new_tokens=8, is_canary=True)).text == expected.text
    )
    assert sum(counts) == 6


def test_two_canaries_of_different_pages_at_once_keep_their_own_features():
    requests = [tiny_request(f"s{seed}", seed=seed, max_new_tokens=8, is_canary=True) for seed in (1, 2)]
    expected = [read(engine_of(), request).text for request in requests]
    engine = engine_of()
    for request in requests:
        engine.submit(request)
    found = outcomes(drain(engine))
    assert [found[request.sequence_id].text for request in requests] == expected
    assert [read(engine, request).text for request in reversed(requests)] == expected[::-1]


def test_an_ordinary_page_with_the_canarys_pixels_is_encoded(count_views):
    engine = engine_of()
    read(engine, canary("a"))
    counts = count_views(engine)
    read(engine, tiny_request("b", seed=99, width_px=128, max_new_tokens=8))
    assert sum(counts) == 3


def test_a_canary_goes_before_all_that_wait_and_disturbs_nobodys_text():
    requests = [tiny_request(f"page-{seed}", seed=seed, max_new_tokens=12) for seed in range(5)]
    expected = {request.sequence_id: read(engine_of(), request).text for request in requests}
    engine = engine_of(batch_size=1)
    read(engine, canary("warm"))
    for request in requests:
        engine.submit(request)
    engine.step()
    engine.submit(canary("canary-1", "a@1"))
    engine.submit(canary("canary-2", "a@2"))
    results = [event for event in drain(engine) if isinstance(event, SequenceResult)]
    assert [result.sequence_id for result in results] == [
        "page-0", "canary-1", "canary-2", "page-1", "page-2", "page-3", "page-4",
    ]  # fmt: skip
    assert {result.sequence_id: result.text for result in results if result.sequence_id in expected} == expected


def test_a_canary_with_features_at_hand_needs_as_many_steps_as_tokens():
    engine = engine_of(views_per_step=1, batch_size=4)
    read(engine, canary("warm"))
    for seed in range(2):
        engine.submit(tiny_request(f"page-{seed}", seed=seed, width_px=192, max_new_tokens=60))
    engine.step()
    engine.submit(canary("canary", "a@1"))
    # Prefill chooses a token, and the step that does it decodes one more.
    events = [event for _ in range(8) for event in engine.step()]
    assert "canary" in outcomes(events)
    drain(engine)


def test_a_canary_that_was_cancelled_before_it_was_encoded_leaves_nothing_behind():
    engine = engine_of(views_per_step=1)
    engine.submit(canary("a"))
    engine.step()
    engine.cancel("a")
    drain(engine)
    expected = read(engine_of(), tiny_request("b", seed=99, width_px=128, max_new_tokens=8)).text
    assert read(engine, canary("b")).text == expected
