from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.engine.gpu.memory import BOUNDS, GIB, DecoderShape, MemoryPlan, plan_memory
from service.errors import EngineError

PUBLIC = DecoderShape(
    num_layers=12, hidden_size=1280, vocab_size=129_280, dense_width=6848, expert_width=896, num_chosen=8, value_bytes=2
)
WEIGHTS = int(6.7e9)
INT8_WEIGHTS = int(3.92e9)
"""See `test_packing.py`."""
CONTEXT = GIB // 2


def plan_of(card_gib: float, **changes) -> MemoryPlan:
    values = {
        "total_bytes": int(card_gib * GIB),
        "used_bytes": WEIGHTS + CONTEXT,
        "fraction": 0.9,
        "shape": PUBLIC,
        "slots": 256,
        "max_sequence_tokens": 8192,
        "block_tokens": 64,
        **changes,
    }
    return plan_memory(**values)


def test_a_token_costs_what_was_measured():
    assert PUBLIC.kv_token_bytes == 61_440


@pytest.mark.parametrize(
    ("card_gib", "slots", "least_tokens"),
    [(11.6, 16, 25_000), (15.7, 64, 70_000), (23.5, 128, 170_000), (39.4, 256, 400_000), (79.2, 256, 950_000)],
)
def test_cards_from_12_to_80_gb_hold_a_useful_cache(card_gib, slots, least_tokens):
    plan = plan_of(card_gib, slots=slots)
    assert plan.num_blocks * 64 >= least_tokens
    assert plan.cache_bytes == plan.num_blocks * 64 * PUBLIC.kv_token_bytes


def test_larger_cards_do_larger_steps():
    found = [BOUNDS.index(plan_of(card_gib, slots=8).bounds) for card_gib in (9.4, 11.6, 23.5, 79.2)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (len(BOUNDS) - 1, 0)


def test_no_more_blocks_than_slots_can_fill():
    plan = plan_of(79.2, slots=2, max_sequence_tokens=1000)
    assert plan.num_blocks == 2 * 16


@pytest.mark.parametrize("card_gib", [6, 8])
def test_a_card_that_is_too_small_is_told_so_at_the_start(card_gib):
    with pytest.raises(EngineError, match="too small"):
        plan_of(card_gib, slots=8)


@pytest.mark.parametrize(("card_gib", "least_tokens"), [(7.6, 10_000), (9.6, 30_000)])
def test_8_bit_rows_leave_smaller_cards_a_useful_cache(card_gib, least_tokens):
    plan = plan_of(card_gib, used_bytes=INT8_WEIGHTS + CONTEXT, slots=16)
    assert plan.num_blocks * 64 >= least_tokens


def test_6_gb_are_too_few_for_8_bit_rows_as_well():
    with pytest.raises(EngineError, match="too small"):
        plan_of(5.8, used_bytes=INT8_WEIGHTS + CONTEXT, slots=8)


@given(
    card_gib=st.floats(4, 200),
    used_gib=st.floats(0, 100),
    fraction=st.floats(0.1, 1.0),
    slots=st.integers(1, 256),
    max_sequence_tokens=st.integers(1, 8192),
    block_tokens=st.sampled_from([16, 64, 128]),
)
def test_a_plan_stays_within_its_share(card_gib, used_gib, fraction, slots, max_sequence_tokens, block_tokens):
    used = int(used_gib * GIB)
    assume(used <= card_gib * GIB)
    changes = {
        "used_bytes": used,
        "fraction": fraction,
        "slots": slots,
        "max_sequence_tokens": max_sequence_tokens,
        "block_tokens": block_tokens,
    }
    try:
        plan = plan_of(card_gib, **changes)
    except EngineError:
        return
    assert used + plan.cache_bytes + plan.scratch_bytes <= card_gib * GIB * fraction
    assert plan.num_blocks * block_tokens >= min(max_sequence_tokens, 2048)


def test_adapters_take_from_the_cache():
    plain, adapted = plan_of(23.7), plan_of(23.7, adapter_bytes=GIB)
    assert adapted.bounds == plain.bounds
    assert (plain.cache_bytes - adapted.cache_bytes) / GIB == pytest.approx(1, rel=0.01)
    with pytest.raises(EngineError, match="too small"):
        plan_of(23.7, adapter_bytes=16 * GIB)


def test_a_wider_type_leaves_less_room():
    wide = replace(PUBLIC, value_bytes=4)
    assert plan_of(39.4, shape=wide, used_bytes=2 * WEIGHTS).num_blocks < plan_of(39.4).num_blocks // 2
