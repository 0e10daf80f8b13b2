"""The engine over the GPU's runner, kernels in plain torch: the same texts, whatever happens around them."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.gpu import reports
from service.engine.gpu.decoder import GpuDecoder
from service.engine.protocol import SequenceDelta, SequenceFailure, SequenceResult
from service.engine.runner import DeviceStuckError
from service.engine.vision.preparation import Staging
from shared.contract.repetition import LoopRule
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.test_engine import ALONE, MODEL, looping_model, outcomes, request_of
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_model, tiny_page, tiny_request

NEVER = LoopRule(min_tokens=10_000)
SHORT = LoopRule(min_tokens=12, min_repeats=3)


def engine_of(**limits):
    return paged_engine(MODEL, **{"loop_rule": NEVER, **limits})


def read(engine, seeds=range(8)):
    for seed in seeds:
        engine.submit(request_of(seed))
    return outcomes(drain(engine))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    order=st.permutations(range(8)),
    pauses=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    batch_size=st.integers(1, 5),
    views_per_step=st.integers(1, 6),
    prefill_tokens_per_step=st.sampled_from([1, 40, 4096]),
    kv_tokens=st.sampled_from([None, 96, 200]),
)
def test_text_does_not_depend_on_company_or_arrival(order, pauses, batch_size, **limits):
    engine = engine_of(batch_size=batch_size, **limits)
    events = []
    for seed, pause in zip(order, pauses, strict=True):
        engine.submit(request_of(seed))
        for _ in range(pause):
            events += engine.step()
            engine.check_integrity()
    found = outcomes(events + drain(engine))
    # ALONE is compared with transformers' own generation by `test_engine`.
    assert {name: result.text for name, result in found.items()} == {n: r.text for n, r in ALONE.items()}
    for name, result in found.items():
        assert result.confidence == pytest.approx(ALONE[name].confidence, rel=1e-4)
        assert result.finish_reason is ALONE[name].finish_reason


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(8)), batch_size=st.integers(1, 5))
def test_loops_and_second_attempts_are_those_of_the_plain_runner(order, batch_size):
    texts = []
    for make in (tiny_engine, paged_engine):
        engine = make(MODEL, loop_rule=SHORT, batch_size=batch_size)
        for seed in order:
            engine.submit(tiny_request(f"page-{seed}", seed=seed, width_px=128, max_new_tokens=60))
        found = outcomes(drain(engine))
        texts.append({name: (result.text, result.finish_reason) for name, result in found.items()})
    assert texts[0] == texts[1]


def test_a_looping_page_gets_its_second_attempt():
    texts = []
    for make in (tiny_engine, paged_engine):
        engine = make(looping_model(), loop_rule=SHORT, max_new_tokens=200)
        engine.submit(tiny_request("a", seed=1, max_new_tokens=200))
        engine.submit(tiny_request("b", seed=2, max_new_tokens=200, prompt="\nother"))
        texts.append({name: (r.text, r.finish_reason) for name, r in outcomes(drain(engine)).items()})
    assert texts[0] == texts[1]


def test_deltas_join_to_the_text():
    engine = engine_of()
    for seed in range(6):
        engine.submit(request_of(seed))
    events = drain(engine)
    for name, result in outcomes(events).items():
        assert "".join(e.text for e in events if isinstance(e, SequenceDelta) and e.sequence_id == name) == result.text


def test_a_cancelled_page_frees_its_blocks_while_a_step_is_on_its_way():
    engine = engine_of(batch_size=2)
    for seed in range(6):
        engine.submit(request_of(seed))
    engine.step()
    for name in ("page-0", "page-4"):
        engine.cancel(name)
        engine.check_integrity()
    found = outcomes(drain(engine))
    assert {name: result.text for name, result in found.items()} == {
        name: result.text for name, result in ALONE.items() if name in found
    }
    assert found.keys() == {"page-1", "page-2", "page-3", "page-5"}


def test_not_a_number_fails_that_page_alone_and_leaves_nothing_behind(monkeypatch):
    engine = engine_of(batch_size=3)
    poisoned_page = tiny_page(5)
    vision = engine._runner._vision
    encode = vision.encode

    def poisoned(views):
        tokens = encode(views)
        return [
            torch.full_like(found, float("nan")) if np.array_equal(view, poisoned_page.global_view_HWC) else found
            for view, found in zip(views, tokens, strict=True)
        ]

    monkeypatch.setattr(vision, "encode", poisoned)
    engine.submit(tiny_request("bad", seed=5))
    for seed in range(5):
        engine.submit(request_of(seed))
    found = outcomes(drain(engine))
    assert found["bad"].code == "engine_failed"
    assert all(found[f"page-{seed}"].text == ALONE[f"page-{seed}"].text for seed in range(5))


def limit_prefill(monkeypatch, fits):
    """Prefill finds no memory for batches that do not fit: called with the number of prompts and the longest."""
    real = GpuDecoder.prefill

    def limited(self, batch, *rest, **options):
        positions = batch.positions_T[batch.cells_T >= 0]
        if not fits(int((positions == 0).sum()), int(positions.max()) + 1):
            raise torch.cuda.OutOfMemoryError("injected")
        return real(self, batch, *rest, **options)

    monkeypatch.setattr(GpuDecoder, "prefill", limited)


def limit_encoding(monkeypatch, engine, fits):
    """Encoding finds no memory for views that do not fit."""
    vision = engine._runner._vision
    real = vision.encode

    def limited(views):
        if not fits(views):
            raise torch.cuda.OutOfMemoryError("injected")
        return real(views)

    monkeypatch.setattr(vision, "encode", limited)


def test_without_memory_views_are_encoded_in_smaller_batches(monkeypatch):
    engine = engine_of(views_per_step=6)
    limit_encoding(monkeypatch, engine, lambda views: len(views) <= 2)
    assert {name: r.text for name, r in read(engine).items()} == {name: r.text for name, r in ALONE.items()}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_view_for_which_there_is_no_memory_at_all_fails_its_pages_alone(monkeypatch, batch_size):
    engine = engine_of(batch_size=batch_size)
    sick = tiny_page(0).global_view_HWC
    limit_encoding(monkeypatch, engine, lambda views: not any(np.array_equal(view, sick) for view in views))
    engine.submit(request_of(0))
    events = engine.step() if batch_size > 1 else []
    for seed in range(1, 8):
        engine.submit(request_of(seed))
    found = outcomes(events + drain(engine))
    assert isinstance(found.pop("page-0"), SequenceFailure)
    assert {name: r.text for name, r in found.items()} == {
        name: r.text for name, r in ALONE.items() if name != "page-0"
    }


def test_without_memory_prompts_are_read_in_smaller_batches(monkeypatch):
    limit_prefill(monkeypatch, lambda count, _: count <= 1)
    assert {name: r.text for name, r in read(engine_of()).items()} == {name: r.text for name, r in ALONE.items()}


def test_a_prompt_for_which_there_is_no_memory_at_all_fails_alone(monkeypatch):
    longest = 7 + 11 + 24
    limit_prefill(monkeypatch, lambda _, length: length < longest)
    engine = engine_of()
    engine.submit(tiny_request("long", prompt="\n" + "x" * 40))
    found = read(engine)
    assert isinstance(found.pop("long"), SequenceFailure)
    assert {name: r.text for name, r in found.items()} == {name: r.text for name, r in ALONE.items()}


def test_an_error_of_the_device_ends_the_engine(monkeypatch):
    engine = engine_of()
    engine.submit(request_of(0))
    engine.step()

    def broken(self, slots):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(type(engine._runner), "launch", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        drain(engine)


def test_a_step_that_hangs_is_an_error_and_no_silence(monkeypatch):
    class Never:
        def query(self):
            return False

    monkeypatch.setattr(reports, "STUCK_S", 0.01)
    with pytest.raises(DeviceStuckError):
        reports.wait_for(Never())
    # Memory from which pages are sent waits for the device as well.
    staging = Staging(torch.device("cpu"), num_bytes=100)
    staging.note(staging.reserve(60), 60, Never())
    with pytest.raises(DeviceStuckError):
        staging.reserve(60)


def test_the_decoder_can_take_the_models_layers_over():
    model = tiny_model()
    held = sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert held
    from service.engine.kernels.reference import decoder as reference

    GpuDecoder(model, reference, max_positions=16, takes_over=True)
    assert not list(model.model.layers.parameters())


def test_warming_up_and_padding_stay_within_the_positions_that_there_are():
    """Plain kernels refuse a position beyond the tables; compiled ones would read whatever lies there."""
    limits = {"batch_size": 2, "max_sequence_tokens": 48, "max_new_tokens": 8}
    runner = engine_of(**limits, adapter_slots=2, adapter_max_rank=4)._runner
    with torch.inference_mode():
        runner._prompts.read_usual(runner._choose_nowhere)
        for prompts in runner._prompts.graphs:
            prompts._fill_for_capture(1024)
            prompts._read(1024)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {"num_experts_per_tok": 1, "n_shared_experts": 0},
        {"first_k_dense_replace": 3, "n_shared_experts": 2},
    ],
)
def test_other_mixtures_choose_what_the_model_chooses(changes):
    from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
    from tests.unit.service.engine.tiny import tiny_config

    config = tiny_config()
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(3)
    model = DeepseekOcrForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    texts = []
    for make in (tiny_engine, paged_engine):
        engine = make(model, loop_rule=NEVER)
        results = read(engine)
        assert all(isinstance(result, SequenceResult) for result in results.values())
        texts.append({name: result.text for name, result in results.items()})
    assert texts[0] == texts[1]
