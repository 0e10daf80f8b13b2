import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.gpu.paged_cache import BlockAllocator, PagedCache

moves_st = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60)


@given(num_blocks=st.integers(1, 20), moves=moves_st)
def test_no_block_has_two_owners_and_freed_blocks_are_taken_again(num_blocks, moves):
    allocator, held = BlockAllocator(num_blocks), {}
    for owner, count in moves:
        free = num_blocks - sum(map(len, held.values()))
        assert allocator.num_free == free
        if owner in held:
            allocator.give_back(owner)
            del held[owner]
        elif 0 < count <= free:
            held[owner] = allocator.take(owner, count)
            assert len(held[owner]) == count
        else:
            # All or nothing: a refusal changes nothing.
            with pytest.raises(ValueError, match="blocks"):
                allocator.take(owner, count)
        taken = [block for blocks in held.values() for block in blocks]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(num_blocks))
        assert all(allocator.held(owner) == blocks for owner, blocks in held.items())
        allocator.check_integrity()
    for owner in held:
        allocator.give_back(owner)
    assert len(allocator.take(99, num_blocks)) == num_blocks


def test_an_owner_takes_once():
    allocator = BlockAllocator(4)
    allocator.take(0, 1)
    with pytest.raises(ValueError, match="holds"):
        allocator.take(0, 1)


def cache_of(num_blocks=12, num_slots=4, max_tokens=20, block_tokens=4) -> PagedCache:
    return PagedCache(
        num_layers=2,
        num_heads=1,
        head_dim=2,
        num_slots=num_slots,
        num_blocks=num_blocks,
        max_tokens=max_tokens,
        block_tokens=block_tokens,
    )


def test_the_devices_table_says_what_the_host_decided():
    cache = cache_of()
    cache.open([2, 0], [5, 8])
    assert cache.tables_SX[2, :2].tolist() == cache.allocator.held(2)
    assert cache.tables_SX[0, :2].tolist() == cache.allocator.held(0)
    cache.close(2)
    cache.open([1], [20])
    assert cache.tables_SX[1].tolist() == cache.allocator.held(1)
    assert not set(cache.allocator.held(1)) & set(cache.allocator.held(0))
    assert cache.tables_SX.shape == (5, 5)
    assert cache.num_tokens == 48


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_every_token_has_a_cell_of_its_own(lengths):
    cache = cache_of()
    slots = list(range(len(lengths)))
    cache.open(slots, lengths)
    cells = torch.cat([torch.from_numpy(cache.cells(slot, length)) for slot, length in enumerate(lengths)])
    assert len(cells.unique()) == sum(lengths)
    for slot, length in enumerate(lengths):
        for position, cell in enumerate(cache.cells(slot, length).tolist()):
            assert cell // 4 == cache.tables_SX[slot, position // 4]
            assert cell % 4 == position % 4


def test_what_does_not_fit_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="wanted"):
        cache_of(num_blocks=2).open([0], [9])
