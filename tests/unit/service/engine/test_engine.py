import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.cpu.packed_decoder import PackedDecoder
from service.engine.protocol import SequenceDelta, SequenceFailure, SequenceResult
from service.errors import EngineError
from shared.contract.answer import FinishReason
from shared.contract.repetition import LoopRule
from tests.unit.service.engine.tiny import (
    drain,
    tiny_engine,
    tiny_model,
    tiny_page,
    tiny_request,
    tiny_tokenizer,
)

MODEL = tiny_model()
TOKENIZER = tiny_tokenizer()
NEVER = LoopRule(min_tokens=10_000)


def engine_of(**limits):
    return tiny_engine(MODEL, **{"loop_rule": NEVER, **limits})


def outcomes(events):
    return {event.sequence_id: event for event in events if not isinstance(event, SequenceDelta)}


def request_of(seed: int, **changes):
    """Pages of three sizes and answers of several lengths, so that rows differ in everything."""
    width_px = (64, 128, 192)[seed % 3]
    return tiny_request(f"page-{seed}", seed=seed, width_px=width_px, max_new_tokens=6 + 7 * (seed % 4), **changes)


def generated(request) -> str:
    """What transformers' own greedy generation reads on the page."""
    page = request.page
    ids = TOKENIZER.encode_prompt(page.plan, request.prompt)
    out = MODEL.generate(
        torch.tensor([ids]),
        global_views_BHWC=torch.from_numpy(page.global_view_HWC)[None],
        tiles_THWC=torch.from_numpy(page.tiles_THWC),
        tile_grids_B2=torch.tensor([[page.plan.tile_columns, page.plan.tile_rows]]),
        max_new_tokens=request.params.max_new_tokens,
        do_sample=False,
        eos_token_id=TOKENIZER.eos_id,
        pad_token_id=TOKENIZER.pad_id,
    )
    return TOKENIZER.decode(out[0, len(ids) :].tolist())


ALONE = {}
for seed in range(8):
    engine = engine_of()
    engine.submit(request_of(seed))
    ALONE |= outcomes(drain(engine))


@pytest.mark.parametrize("seed", range(8))
def test_text_equals_generation_by_transformers(seed):
    assert ALONE[f"page-{seed}"].text == generated(request_of(seed))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    order=st.permutations(range(8)),
    pauses=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    batch_size=st.integers(1, 5),
    views_per_step=st.integers(1, 6),
)
def test_text_does_not_depend_on_company_or_arrival(order, pauses, batch_size, views_per_step):
    engine = engine_of(batch_size=batch_size, views_per_step=views_per_step)
    events = []
    for seed, pause in zip(order, pauses, strict=True):
        engine.submit(request_of(seed))
        for _ in range(pause):
            events += engine.step()
            engine.check_integrity()
    found = outcomes(events + drain(engine))
    assert {name: result.text for name, result in found.items()} == {n: r.text for n, r in ALONE.items()}
    for name, result in found.items():
        assert result.confidence == pytest.approx(ALONE[name].confidence, rel=1e-4)


def test_deltas_join_to_the_text():
    engine = engine_of()
    for seed in range(6):
        engine.submit(request_of(seed))
    events = drain(engine)
    for name, result in outcomes(events).items():
        deltas = [e.text for e in events if isinstance(e, SequenceDelta) and e.sequence_id == name]
        assert "".join(deltas) == result.text
        assert all(deltas)


def test_a_text_that_is_not_streamed_shows_its_beginning_and_ends_the_same():
    engine = engine_of()
    for seed in range(6):
        engine.submit(request_of(seed, is_streamed=seed % 2 == 0))
    events = drain(engine)
    for seed in range(6):
        name = f"page-{seed}"
        deltas = [e.text for e in events if isinstance(e, SequenceDelta) and e.sequence_id == name]
        text = outcomes(events)[name].text
        assert text == ALONE[name].text
        if seed % 2:
            assert len(deltas) == 1
            assert text.startswith(deltas[0])
        else:
            assert "".join(deltas) == text


def test_result_counts_tokens_and_time():
    engine = engine_of()
    engine.submit(tiny_request("a", width_px=128, max_new_tokens=9))
    result = outcomes(drain(engine))["a"]
    assert (result.vision_tokens, result.prompt_tokens, result.completion_tokens) == (17, 11, 9)
    assert result.finish_reason is FinishReason.LENGTH
    assert min(dataclasses.astuple(result.timings)) > 0


def test_end_token_ends_the_page_and_stays_out_of_the_text(monkeypatch):
    text = ALONE["page-3"].text
    engine = engine_of()
    stop = TOKENIZER.encode_plain(text[0])[0]
    monkeypatch.setattr(engine._runner, "_eos_id", stop)
    engine.submit(request_of(3))
    result = outcomes(drain(engine))["page-3"]
    assert result.finish_reason is FinishReason.STOP
    assert result.completion_tokens == 0
    assert result.text == ""
    assert 0 < result.confidence < 1


def test_confidence_is_the_geometric_mean_of_chosen_probabilities():
    request = request_of(0)
    page = request.page
    ids = TOKENIZER.encode_prompt(page.plan, request.prompt)
    out = MODEL.generate(
        torch.tensor([ids]),
        global_views_BHWC=torch.from_numpy(page.global_view_HWC)[None],
        max_new_tokens=request.params.max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=TOKENIZER.pad_id,
    )
    chosen = [logits.log_softmax(-1).max().item() for logits in out.logits]
    assert ALONE["page-0"].confidence == pytest.approx(np.exp(np.mean(chosen)), rel=1e-4)
    assert ALONE["page-0"].min_confidence == pytest.approx(np.exp(min(chosen)), rel=1e-4)


def test_a_cancelled_page_is_never_heard_of_again_and_frees_its_row():
    engine = engine_of(batch_size=2)
    for seed in range(4):
        engine.submit(request_of(seed))
    engine.step()
    for name in ("page-0", "page-3", "unknown"):
        engine.cancel(name)
        engine.check_integrity()
    events = drain(engine)
    assert {e.sequence_id for e in events} == {"page-1", "page-2"}
    assert outcomes(events)["page-2"].text == ALONE["page-2"].text


def test_not_a_number_fails_that_page_alone(monkeypatch):
    engine = engine_of()
    for seed in range(3):
        engine.submit(request_of(seed))
    decode, poison = PackedDecoder.logits, itertools.count()

    def poisoned(self, tokens, window, *rest):
        logits = decode(self, tokens, window)
        if next(poison) == 2:
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(PackedDecoder, "logits", poisoned)
    events = drain(engine)
    found = outcomes(events)
    failures = [e for e in events if isinstance(e, SequenceFailure)]
    assert [f.code for f in failures] == ["engine_failed"]
    healthy = [r for r in found.values() if isinstance(r, SequenceResult)]
    assert len(healthy) == 2
    assert all(r.text == ALONE[r.sequence_id].text for r in healthy)


def test_not_a_number_in_the_cache_does_not_reach_the_next_page(monkeypatch):
    engine = engine_of(batch_size=3)
    poisoned_page = tiny_page(5)
    encode = type(MODEL).encode_views

    def poisoned(model, views):
        tokens = encode(model, views)
        for index, view in enumerate(views.numpy()):
            if np.array_equal(view, poisoned_page.global_view_HWC):
                tokens[index] = float("nan")
        return tokens

    # Of the class: the engine reads with a twin of the model.
    monkeypatch.setattr(type(MODEL), "encode_views", poisoned)
    engine.submit(tiny_request("bad", seed=5))
    for seed in range(6):
        engine.submit(request_of(seed, **({} if seed != 5 else {"page": tiny_page(50)})))
    found = outcomes(drain(engine))
    assert isinstance(found["bad"], SequenceFailure)
    assert all(found[f"page-{seed}"].text == ALONE[f"page-{seed}"].text for seed in range(5))


def test_what_cannot_run_is_answered_not_queued():
    engine = engine_of(kv_tokens=60)
    page = tiny_page(0)
    broken = dataclasses.replace(page, global_view_HWC=page.global_view_HWC[:32])
    engine.submit(tiny_request("model", model_id="other"))
    engine.submit(tiny_request("views", page=broken))
    engine.submit(tiny_request("prompt", prompt="x" * 300))
    engine.submit(tiny_request("cache", max_new_tokens=64))
    codes = {name: failure.code for name, failure in outcomes(drain(engine)).items()}
    assert codes == {
        "model": "model_not_found",
        "views": "engine_failed",
        "prompt": "too_many_vision_tokens",
        "cache": "too_many_vision_tokens",
    }


def test_an_answer_longer_than_the_room_ends_with_length():
    engine = engine_of(max_sequence_tokens=30, max_new_tokens=64)
    engine.submit(tiny_request("a", max_new_tokens=64))
    result = outcomes(drain(engine))["a"]
    assert result.completion_tokens == 30 - 7 - 11
    assert result.finish_reason is FinishReason.LENGTH


def test_statistics_count_what_happened():
    engine = engine_of(batch_size=2)
    for seed in range(3):
        engine.submit(tiny_request(str(seed), seed=seed, max_new_tokens=4))
    engine.step()
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.steps, stats.batch_sizes) == (1, 2, 1, (2,))
    drain(engine)
    assert sum(engine.stats().batch_sizes) == 3 * 3 - 2
    assert engine.stats().batch_sizes == ()


def test_warm_up_leaves_no_trace():
    engine = engine_of()
    engine.warm_up()
    assert not engine.has_work
    assert (engine.stats().steps, engine.stats().batch_sizes) == (0, ())


def test_warm_up_of_a_broken_model_is_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(EngineError):
        tiny_engine(model).warm_up()


def test_rows_are_not_leaked_under_random_traffic():
    choose = random.Random(3)
    engine = engine_of(batch_size=3)
    events, submitted, cancelled = [], 0, set()
    for _ in range(200):
        if choose.random() < 0.3:
            engine.submit(tiny_request(str(submitted), seed=submitted, max_new_tokens=choose.randint(1, 8)))
            submitted += 1
        if submitted and choose.random() < 0.1:
            name = str(choose.randrange(submitted))
            engine.cancel(name)
            if name not in outcomes(events):
                cancelled.add(name)
        events += engine.step()
        engine.check_integrity()
    events += drain(engine)
    final = [e.sequence_id for e in events if not isinstance(e, SequenceDelta)]
    assert len(final) == len(set(final))
    assert set(final) == {str(n) for n in range(submitted)} - cancelled
    engine.check_integrity()
    assert len(engine._pages._free_slots) == 3


def looping_model():
    """A model that chooses the token it was given, whatever the page: the purest loop."""
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_() if hasattr(layer.mlp, "down_proj") else None
            if hasattr(layer.mlp, "experts"):
                layer.mlp.experts.down_proj.zero_()
                layer.mlp.shared_experts.down_proj.weight.zero_()
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    return model


def test_a_looping_page_ends_early_and_does_not_disturb_its_neighbours():
    model = looping_model()
    rule = LoopRule(min_tokens=12, min_repeats=3)
    engine = tiny_engine(model, loop_rule=rule, max_new_tokens=200)
    engine.submit(tiny_request("a", seed=1, max_new_tokens=200))
    engine.submit(tiny_request("b", seed=2, max_new_tokens=200, prompt="\nother"))
    events = drain(engine)
    found = outcomes(events)
    assert [found[name].finish_reason for name in "ab"] == [FinishReason.REPETITION] * 2
    assert engine.stats().steps < 60
    # The last character of each prompt, for ever.
    assert found["a"].text[0] == "."
    assert found["b"].text[0] == "r"
    for name in "ab":
        deltas = [e.text for e in events if isinstance(e, SequenceDelta) and e.sequence_id == name]
        assert "".join(deltas) == found[name].text
        assert found[name].completion_tokens < 20
