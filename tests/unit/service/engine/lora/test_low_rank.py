"""Low-rank sums of rows sorted by slot against the plain definition, whatever rows lie together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.kernels.reference.decoder import lora_add
from service.engine.lora.low_rank import compact, rows_by_slot
from tests.support.lora import random_adapter
from tests.unit.service.engine.lora.lora_ways import MODEL, bank_of, plain_logits, prompts_of

SLOTS, MAX_RANK, INPUTS, WIDTH = 3, 8, 12, 5


def stacked(parts, ranks):
    """Matrices of all slots as a bank holds them: nothing beyond an adapter's rank."""
    torch.manual_seed(parts)
    down = torch.randn(SLOTS, parts, MAX_RANK, INPUTS)
    up = torch.randn(SLOTS, parts * WIDTH, MAX_RANK)
    for slot, rank in enumerate(ranks):
        down[slot, :, rank:] = 0
        up[slot, :, rank:] = 0
    return down.flatten(1, 2), up


@given(slots=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=9), parts=st.integers(1, 3))
def test_sums_are_those_of_the_definition_and_other_rows_stay_as_they_are(slots, parts):
    ranks = (8, 3, 1)
    down, up = stacked(parts, ranks)
    x, out = torch.randn(len(slots), INPUTS), torch.randn(len(slots), parts * WIDTH)
    expected, before = out.clone(), out.clone()
    lora_add(x, expected, down, up, torch.tensor(slots, dtype=torch.int32), WIDTH)
    for group in rows_by_slot(slots):
        matrices = compact(down[group.slot], up[group.slot], parts, ranks[group.slot], MAX_RANK)
        matrices.add(x, out, group.rows)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    none = torch.tensor(slots) < 0
    assert out[none].equal(before[none])


@given(slots=st.lists(st.integers(-1, 4), max_size=12))
def test_every_row_with_an_adapter_is_in_one_group_and_neighbours_are_a_slice(slots):
    places = torch.arange(len(slots))
    found = {}
    for group in rows_by_slot(slots):
        rows = places[group.rows].tolist()
        found |= dict.fromkeys(rows, group.slot)
        assert isinstance(group.rows, slice) == (rows == list(range(rows[0], rows[-1] + 1)))
    assert found == {row: slot for row, slot in enumerate(slots) if slot >= 0}


def test_a_part_gives_its_own_outputs():
    down, up = stacked(3, (8, 8, 8))
    x = torch.randn(4, INPUTS)
    whole, alone = torch.zeros(4, 3 * WIDTH), torch.zeros(4, WIDTH)
    matrices = compact(down[0], up[0], 3, 8, MAX_RANK)
    matrices.add(x, whole, slice(0, 4))
    matrices.part(1).add(x, alone, slice(0, 4))
    torch.testing.assert_close(alone, whole[:, WIDTH : 2 * WIDTH])


def test_a_group_that_an_adapter_leaves_alone_has_no_matrices():
    down, up = stacked(2, (8, 8, 8))
    assert compact(down[0], torch.zeros_like(up[0]), 2, 8, MAX_RANK) is None


@pytest.mark.parametrize("rank", [8, 2])
def test_a_slot_that_is_filled_again_forgets_what_was_in_it(rank):
    bank, fresh = bank_of(), bank_of()
    first, second = random_adapter(MODEL, 1, rank=5), random_adapter(MODEL, 2, rank=rank)
    prompts = prompts_of(2)
    bank.load(0, bank.pack(first))
    plain_logits(MODEL, prompts, [30, 40], bank, [0, 0])
    bank.load(0, bank.pack(second))
    fresh.load(0, fresh.pack(second))
    again = plain_logits(MODEL, prompts, [30, 40], bank, [0, 0])
    for left, right in zip(again, plain_logits(MODEL, prompts, [30, 40], fresh, [0, 0]), strict=True):
        assert left.equal(right)
