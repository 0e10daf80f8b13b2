"""Models whose answers see a window of themselves: the cache keeps little more than the window, and nothing is lost."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from service.engine.answer_ring import AnswerRing
from service.engine.cpu.kv_cache import SlotCache
from service.engine.engine import TorchEngine
from service.engine.gpu.runner import GpuRunner
from service.engine.protocol import SamplingParams, SequenceResult
from service.engine.scheduler import PageCost
from shared.contract.answer import FinishReason
from shared.contract.repetition import LoopDetector, LoopRule, Rows
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.images.page_ink import InkLine
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_model, tiny_request

WINDOW = 8
RULE = LoopRule(max_period=4, min_tokens=12, min_repeats=3)
RING = AnswerRing(WINDOW + RULE.max_rewind, WINDOW)
SEED = 1
"""Of a drawn answer that does not end soon."""
MAKERS = [tiny_engine, paged_engine]
LINES = (InkLine((40, 40, 360, 70), (45, 93), 14.0),)


def windowed(seed: int = 0) -> DeepseekOcrForConditionalGeneration:
    model = tiny_model(seed)
    model.config.text_config.answer_window = WINDOW
    return model


def read(
    engine: TorchEngine, num_pages: int, tokens: int, lines: tuple[InkLine, ...] = ()
) -> dict[str, tuple[str, FinishReason]]:
    for seed in range(num_pages):
        request = tiny_request(f"page-{seed}", seed=seed, width_px=64 * (1 + seed % 2), max_new_tokens=tokens)
        engine.submit(replace(request, lines=lines))
    results = [event for event in drain(engine) if isinstance(event, SequenceResult)]
    return {result.sequence_id: (result.text, result.finish_reason) for result in results}


@pytest.mark.parametrize("make", MAKERS)
def test_answers_with_loops_and_second_attempts_are_as_if_the_cache_kept_all(
    make: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
):
    limits = {"loop_rule": RULE, "batch_size": 3, "max_new_tokens": 80}
    kept_little = read(make(windowed(), **limits), 4, 80)
    monkeypatch.setattr(AnswerRing, "of", staticmethod(lambda *_: AnswerRing(10_000, WINDOW)))
    assert read(make(windowed(), **limits), 4, 80) == kept_little
    assert any(len(text) > 2 * RING.cells for text, _ in kept_little.values())


@pytest.mark.parametrize("make", MAKERS)
def test_rows_that_a_page_shows_do_not_disturb_the_ring(
    make: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []

    def find_rows(before: Sequence[bytes], period: Sequence[bytes], lines: Sequence[InkLine]) -> Rows:
        del before, period
        asked.append(len(lines))
        return Rows(25, 0)

    monkeypatch.setattr("service.engine.sequence.find_rows", find_rows)
    limits = {"loop_rule": replace(RULE, ask_tokens=6), "batch_size": 3, "max_new_tokens": 80}
    kept_little = read(make(windowed(), **limits), 4, 80, lines=LINES)
    assert asked
    assert kept_little != read(make(windowed(), **limits), 4, 80)
    monkeypatch.setattr(AnswerRing, "of", staticmethod(lambda *_: AnswerRing(10_000, WINDOW)))
    assert read(make(windowed(), **limits), 4, 80, lines=LINES) == kept_little


def test_both_runners_read_the_same_and_the_window_matters():
    limits = {"loop_rule": RULE, "batch_size": 4, "max_new_tokens": 80}
    texts = [read(make(windowed(), **limits), 4, 80) for make in MAKERS]
    assert texts[0] == texts[1]
    assert texts[0] != read(tiny_engine(tiny_model(), **limits), 4, 80)


def test_no_rewind_goes_back_further_than_the_rule_says():
    for rule in (RULE, LoopRule(), LoopRule(max_period=100, min_tokens=256, min_repeats=4)):
        longest = 0
        for period in range(1, rule.max_period + 1):
            detector = LoopDetector(rule)
            # A prefix, so that the first period is not the beginning.
            tokens = [1000, *(number % period for number in range(3 * rule.max_rewind))]
            for pushed, token in enumerate(tokens, start=1):
                keep = detector.push(token)
                if keep is not None:
                    longest = max(longest, pushed - keep)
                    break
        assert longest == rule.max_rewind


def test_a_page_is_admitted_by_what_the_cache_keeps_of_it():
    assert PageCost("a", 1, 60, 16_000, kept_answer_tokens=448).kv_tokens == 508
    assert PageCost("a", 1, 60, 100, kept_answer_tokens=448).kv_tokens == 160
    assert PageCost("a", 1, 60, 16_000, block_tokens=64, kept_answer_tokens=448).kv_tokens == 512


@pytest.mark.parametrize("make", MAKERS)
def test_long_answers_fit_a_cache_far_smaller_than_they_are(make: Callable[..., TorchEngine]):
    engine = make(windowed(), loop_rule=RULE, batch_size=2, max_new_tokens=120, kv_tokens=96, max_sequence_tokens=256)
    results = read(engine, 2, 120)
    assert len(results) == 2
    assert all(reason is not None for _, reason in results.values())


def test_blocks_of_a_long_answer_stay_the_same():
    rule = LoopRule(max_period=1, min_tokens=40, min_repeats=1)
    engine = paged_engine(windowed(), loop_rule=rule, max_new_tokens=230)
    runner = engine._runner
    assert isinstance(runner, GpuRunner)
    allocator = runner._cache.allocator
    engine.submit(replace(tiny_request("a"), params=SamplingParams(230, temperature=1.0, seed=SEED)))
    engine.step()
    (sequence,) = engine._pages.active.values()
    slot = sequence.slot
    assert slot is not None
    held = list(allocator.held(slot))
    ring = WINDOW + rule.max_rewind
    assert len(held) == -(-(sequence.num_prompt_tokens + ring) // 16)
    while sequence.slot is not None:
        assert list(allocator.held(slot)) == held
        engine.step()
        engine.check_integrity()
    assert len(sequence.answer.tokens) > 2 * ring
    assert allocator.num_free == allocator.num_blocks


def test_memory_of_a_long_answer_is_flat():
    ring = AnswerRing(448, 128)
    cache = SlotCache(num_layers=1, num_heads=1, head_dim=2, max_rows=1, max_tokens=4000, ring=ring, growth_tokens=64)
    prompt = cache.open_rows(1, 273)
    prompt.update(torch.zeros(1, 1, 273, 2), torch.zeros(1, 1, 273, 2), 0)
    capacities = set()
    for number in range(3000):
        window = cache.open_step()
        token = torch.full((1, 1, 1, 2), float(number + 1))
        keys, _ = window.update(token, token, 0)
        if number >= 448:
            capacities.add(cache.capacity)
        if number % 371 == 0:
            shown = torch.ones(keys.shape[2], dtype=torch.bool)
            if window.mask_B11S is not None:
                shown = window.mask_B11S[0, 0, 0] == 0
            seen = sorted(keys[0, 0, shown, 0].tolist())
            newest = [float(each) for each in range(max(0, number - 127), number + 1)]
            assert seen == [0.0] * 273 + [each + 1 for each in newest]
            assert window.position_ids_B1.tolist() == [[273 + number]]
    assert cache.length(0) == 3273
    assert capacities == {768}
