"""The engine over Triton kernels: on a GPU in both types, elsewhere in Triton's interpreter in float32."""

from dataclasses import replace

import pytest
import torch

from service.engine.config import WeightForm
from service.engine.protocol import SequenceResult
from shared.contract.repetition import LoopRule
from tests.support.kernels import DEVICE, GPU_MARK, HAS_GPU, kernel_set
from tests.support.lora import merged, random_adapter
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_model, tiny_request

pytestmark = GPU_MARK
RULE = LoopRule(min_tokens=12, min_repeats=3)


def requests():
    """Pages of three sizes; some answers loop, so that second attempts are part of it."""
    return [
        tiny_request(
            f"page-{seed}",
            seed=seed,
            width_px=(64, 128, 192)[seed % 3],
            max_new_tokens=4 + (8 + 9 * (seed % 3)) * HAS_GPU,
        )
        for seed in range(8 if HAS_GPU else 1)
    ]


def read(engine) -> dict[str, SequenceResult]:
    found = {}
    for request in requests():
        engine.submit(request)
        engine.step()
    for event in drain(engine):
        if isinstance(event, SequenceResult):
            found[event.sequence_id] = event
    return found


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_a_batch_of_adapters_and_base_reads_as_merged_models_do(kernels):
    files = {
        f"a{index}@1": random_adapter(tiny_model(), index, rank=3 + index, experts="" if index == 1 else "stacked")
        for index in range(3 if HAS_GPU else 1)
    }
    tokens = 24 if HAS_GPU else 3
    expected = {}
    for seed, name in enumerate(["tiny", *files]):
        engine = tiny_engine(merged(tiny_model(), files[name]) if name in files else tiny_model(), loop_rule=RULE)
        engine.submit(tiny_request(name, seed=seed, max_new_tokens=tokens))
        expected |= {event.sequence_id: event.text for event in drain(engine) if isinstance(event, SequenceResult)}
    limits = {"loop_rule": RULE, "adapter_slots": 3, "adapter_max_rank": 8, "adapter_experts": True}
    engine = paged_engine(tiny_model().to(DEVICE), kernels=kernel_set(kernels), **limits)
    engine.warm_up()
    for name, file in files.items():
        engine.load_adapter(name, file)
    for _ in range(2 if HAS_GPU else 1):
        for seed, name in enumerate(expected):
            engine.submit(tiny_request(name, seed=seed, max_new_tokens=tokens, model_id=name))
        found = {event.sequence_id: event.text for event in drain(engine) if isinstance(event, SequenceResult)}
        assert found == expected


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_alternatives_are_those_of_plain_torch(kernels):
    """Rows that ask, next to rows that do not, in captured steps too."""
    counts = (5, 0, 20) if HAS_GPU else (5,)

    def asked():
        for seed, count in enumerate(counts):
            request = tiny_request(f"page-{seed}", seed=seed, max_new_tokens=24 if HAS_GPU else 3)
            params = replace(request.params, num_alternatives=count)
            yield replace(request, params=params, wants_token_scores=True)

    def results(engine):
        for request in asked():
            engine.submit(request)
        return {event.sequence_id: event for event in drain(engine) if isinstance(event, SequenceResult)}

    expected = results(tiny_engine(tiny_model(), loop_rule=RULE))
    engine = paged_engine(tiny_model().to(DEVICE), kernels=kernel_set(kernels), loop_rule=RULE)
    engine.warm_up()
    for _ in range(2):
        found = results(engine)
        for seed, count in enumerate(counts):
            scores, right = (each[f"page-{seed}"].token_scores for each in (found, expected))
            assert len(scores.alternatives) == (len(scores.log_probabilities) if count else 0)
            for tops, wanted in zip(scores.alternatives, right.alternatives, strict=True):
                assert len(tops) == count
                # Neighbours that are as likely as each other may change places.
                assert tops[0][0] == wanted[0][0]
                assert [log for _, log in tops] == pytest.approx([log for _, log in wanted], abs=1e-3)


@pytest.mark.skipif(not HAS_GPU, reason="takes minutes in the interpreter, which runs each of these kernels by itself")
def test_8_bit_rows_are_read_alike_by_both_kinds_of_kernels():
    texts = []
    for kernels in ("reference", "fused"):
        model = tiny_model().to(DEVICE)
        engine = paged_engine(model, kernels=kernel_set(kernels), loop_rule=RULE, weights=WeightForm.INT8)
        engine.warm_up()
        texts.append({name: result.text for name, result in read(engine).items()})
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_texts_are_those_of_plain_torch(kernels):
    expected = read(tiny_engine(tiny_model(), loop_rule=RULE))
    engine = paged_engine(tiny_model().to(DEVICE), kernels=kernel_set(kernels), loop_rule=RULE)
    engine.warm_up()
    found = read(engine)
    assert {name: result.text for name, result in found.items()} == {n: r.text for n, r in expected.items()}
    for name, result in found.items():
        assert result.finish_reason is expected[name].finish_reason
        assert result.confidence == pytest.approx(expected[name].confidence, rel=1e-3)
    assert torch.isfinite(torch.tensor([result.confidence for result in found.values()])).all()
