from hypothesis import given
from hypothesis import strategies as st

from service.engine.detokenization import TEXT_INTERVAL_S, DetokenizationThrottle


@given(count=st.integers(1, 40), step_s=st.floats(0.0005, 0.1))
def test_each_has_its_turn_within_the_interval_and_none_twice_in_a_step(count, step_s):
    turns, running, last = DetokenizationThrottle(), list(range(count)), dict.fromkeys(range(count), 0)
    for step in range(1, 200):
        taken = turns.take(running, step_s)
        assert len(set(taken)) == len(taken)
        for name in taken:
            # Rounded up to whole steps, and one more for the fraction that is carried over.
            assert (step - last[name] - 2) * step_s <= TEXT_INTERVAL_S
            last[name] = step


def test_nothing_runs_nothing_is_due():
    turns = DetokenizationThrottle()
    assert turns.take([], 5.0) == ()
    assert turns.take(["a"], 5.0) == ["a"]
    assert turns.take(["a"], 0.0) == ()
