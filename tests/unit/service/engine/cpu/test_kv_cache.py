import pytest
import torch

from service.engine.cpu.kv_cache import SlotCache


def cache_of(**changes) -> SlotCache:
    values = {"num_layers": 2, "num_heads": 2, "head_dim": 3, "max_rows": 4, "max_tokens": 40, "growth_tokens": 8}
    return SlotCache(**{**values, **changes})


def fill(cache: SlotCache, value: float, length: int) -> None:
    window = cache.open_rows(1, length)
    for layer in range(2):
        keys = torch.full((1, 2, length, 3), value)
        window.update(keys, -keys, layer)


def step(cache: SlotCache, values: list[float]):
    """One decode step that stores each row's value; what the second layer may see."""
    window = cache.open_step()
    token = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 2, 1, 3).contiguous()
    window.update(token, -token, 0)
    keys, values_seen = window.update(token, -token, 1)
    assert torch.equal(keys, -values_seen)
    return keys, window


def visible(cache: SlotCache, values: list[float]) -> list[list[float]]:
    keys, window = step(cache, values)
    mask = torch.zeros(keys.shape[0], keys.shape[2]) if window.mask_B11S is None else window.mask_B11S[:, 0, 0]
    return [keys[row, 1, mask[row] == 0, 2].tolist() for row in range(keys.shape[0])]


def test_each_row_sees_its_own_past_and_its_new_token():
    cache = cache_of()
    fill(cache, 1.0, 2)
    fill(cache, 2.0, 4)
    assert visible(cache, [10.0, 20.0]) == [[1, 1, 10], [2, 2, 2, 2, 20]]
    assert visible(cache, [11.0, 21.0]) == [[1, 1, 10, 11], [2, 2, 2, 2, 20, 21]]


def test_rows_of_equal_length_need_no_mask():
    cache = cache_of()
    fill(cache, 1.0, 3)
    fill(cache, 2.0, 3)
    _, window = step(cache, [5.0, 6.0])
    assert window.mask_B11S is None
    assert window.position_ids_B1.tolist() == [[3], [3]]


def test_the_last_row_moves_into_the_place_of_one_that_leaves():
    cache = cache_of()
    for value, length in [(1.0, 2), (2.0, 3), (3.0, 4)]:
        fill(cache, value, length)
    cache.close_row(0)
    assert visible(cache, [30.0, 20.0]) == [[3, 3, 3, 3, 30], [2, 2, 2, 20]]
    cache.close_row(1)
    assert visible(cache, [31.0]) == [[3, 3, 3, 3, 30, 31]]


def test_a_truncated_row_forgets_its_newest_tokens():
    cache = cache_of()
    fill(cache, 1.0, 4)
    step(cache, [10.0])
    cache.truncate(0, 2)
    assert visible(cache, [7.0]) == [[1, 1, 7]]


def test_capacity_grows_in_steps_and_keeps_what_it_holds():
    cache = cache_of()
    fill(cache, 1.0, 3)
    assert cache.capacity == 8
    for count in range(6):
        step(cache, [float(count)])
    assert cache.capacity == 16
    assert visible(cache, [9.0]) == [[1, 1, 1, 0, 1, 2, 3, 4, 5, 9]]


def test_rows_in_use_hold_finite_numbers_beyond_their_length():
    cache = cache_of()
    fill(cache, float("nan"), 6)
    fill(cache, 1.0, 2)
    cache.close_row(0)
    fill(cache, 2.0, 7)
    keys, _ = step(cache, [3.0, 4.0])
    assert torch.isfinite(keys).all()


def test_more_rows_or_tokens_than_planned_are_refused():
    cache = cache_of(max_rows=1, max_tokens=8)
    with pytest.raises(ValueError, match="tokens do not fit"):
        cache.open_rows(1, 8)
    fill(cache, 1.0, 7)
    with pytest.raises(ValueError, match="rows do not fit"):
        cache.open_rows(1, 1)
    step(cache, [1.0])
    with pytest.raises(ValueError, match="tokens do not fit"):
        cache.open_step()


def test_skipped_positions_take_no_cells():
    cache = cache_of()
    window = cache.open_rows(2, 3, skipped=[0, 7])
    for layer in range(2):
        window.update(torch.ones(2, 2, 3, 3), -torch.ones(2, 2, 3, 3), layer)
    _, window = step(cache, [5.0, 6.0])
    assert window.position_ids_B1.tolist() == [[3], [10]]
    assert window.mask_B11S is None
    cache.close_row(0)
    assert visible(cache, [7.0]) == [[1, 1, 1, 6, 7]]
    assert cache.open_step().position_ids_B1.tolist() == [[12]]


def test_several_tokens_of_a_row_get_cells_that_follow_one_another():
    cache = cache_of()
    fill(cache, 1.0, 3)
    fill(cache, 2.0, 6)
    window = cache.open_several([1, 3])
    assert (window.cells, window.positions, window.counts) == ([3, 6], [3, 6, 7, 8], [1, 3])
    assert cache.capacity == window.storage.shape[4] == 16
    assert [cache.length(row) for row in range(2)] == [4, 9]
    cache.truncate(1, 7)
    assert cache.open_several([2, 1]).cells == [4, 7]


def test_drafts_that_were_taken_back_leave_finite_cells_that_move_with_the_row():
    cache = cache_of()
    fill(cache, 1.0, 2)
    fill(cache, 2.0, 2)
    window = cache.open_several([1, 4])
    window.storage[0, :, 1, :, 2:6], window.storage[1, :, 1, :, 2:6] = 7, -7
    cache.truncate(1, 3)
    cache.close_row(0)
    assert visible(cache, [5.0]) == [[2, 2, 7, 5]]
    assert torch.isfinite(window.storage[:, :, 0, :, :6]).all()


def test_several_tokens_that_do_not_fit_are_refused_and_change_nothing():
    cache = cache_of(max_tokens=8)
    fill(cache, 1.0, 6)
    with pytest.raises(ValueError, match="9 tokens do not fit"):
        cache.open_several([3])
    assert cache.length(0) == 6
    assert cache.open_several([2]).cells == [6]
