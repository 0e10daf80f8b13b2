"""The cache hands out everything that came in, whatever its room, and after sequences left."""

from __future__ import annotations

import torch

from trainer.reading.kv_cache import BLOCK_TOKENS, growing_cache


def test_tokens_beyond_the_room_and_after_rows_left_are_all_there():
    cache = growing_cache()
    whole = torch.randn(3, 2, 2 * BLOCK_TOKENS + 80, 4)
    assert cache.get_seq_length() == 0
    for start, stop in ((0, 30), (30, 31), (31, BLOCK_TOKENS + 40), (BLOCK_TOKENS + 40, whole.shape[2])):
        for layer in (0, 1):
            keys, values = cache.update(whole[:, :, start:stop] + layer, whole[:, :, start:stop] - layer, layer)
            assert torch.equal(keys, whole[:, :, :stop] + layer)
            assert torch.equal(values, whole[:, :, :stop] - layer)
    cache.batch_select_indices(torch.tensor([2, 0]))
    new = torch.ones(2, 2, 1, 4)
    keys, values = cache.update(new, 2 * new, 1)
    assert torch.equal(keys, torch.cat((whole[[2, 0]] + 1, new), dim=2))
    assert torch.equal(values, torch.cat((whole[[2, 0]] - 1, 2 * new), dim=2))
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (whole.shape[2], whole.shape[2] + 1)


def test_most_tokens_move_nothing():
    cache = growing_cache()
    places = set()
    for _ in range(BLOCK_TOKENS):
        keys, _ = cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 0)
        places.add(keys.data_ptr())
    assert len(places) == 1
