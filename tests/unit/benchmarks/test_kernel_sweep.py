from types import SimpleNamespace

import pytest

from benchmarks.kernel_sweep import Sweep, combined, one_by_one, settings_sweep


@pytest.fixture
def module():
    return SimpleNamespace(_WARPS=4, TILE=16)


def test_a_candidate_holds_while_it_is_called_and_no_longer(module):
    seen = []
    sweep = settings_sweep("kernel", combined(module, _WARPS=(1, 8)), 2, lambda i: seen.append((module._WARPS, i)))
    for config in sweep.candidates:
        sweep.call(config, 1)
    assert seen == [(4, 1), (1, 1), (8, 1)]
    assert module._WARPS == 4


def test_a_candidate_that_fails_leaves_constants_as_they_were(module):
    def fail(_):
        raise RuntimeError(module.TILE)

    sweep = settings_sweep("kernel", combined(module, TILE=(64,)), 1, fail)
    with pytest.raises(RuntimeError, match="64"):
        sweep.call(sweep.configs[0], 0)
    assert module.TILE == 16


def test_what_is_chosen_comes_first_and_nothing_twice(module):
    sweep = settings_sweep("kernel", one_by_one(module, _WARPS=(2, 4), TILE=(16, 32)), 1, lambda i: i)
    assert [str(config) for config in sweep.candidates] == [
        "WARPS=4 TILE=16",
        "WARPS=2 TILE=16",
        "WARPS=4 TILE=32",
    ]
    assert Sweep("tiles", [1, 2], 1, lambda config, i: config, chosen=2).candidates == [2, 1]


def test_what_decides_between_two_kernels_may_be_fixed(module):
    sweep = settings_sweep("kernel", combined(module, TILE=(0,), _WARPS=(1,)), 1, lambda i: i, TILE=0)
    assert str(sweep.chosen) == "TILE=0 WARPS=4"
