from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission.gate import MAX_RETRY_AFTER_S, Gate, Permit
from service.errors import DrainingError, QueueFullError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_gate(capacity: int = 2, clock: Clock | None = None) -> Gate:
    return Gate(capacity=capacity, page_slots=4, clock=clock or Clock(), jitter=lambda low, high: (low + high) / 2)


def test_full_house_turns_the_next_one_away() -> None:
    gate = make_gate(2)
    with gate.admit(), gate.admit(), pytest.raises(QueueFullError):
        gate.admit()
    with gate.admit():
        assert gate.num_waiting == 1


def test_a_client_that_fills_the_gate_does_not_shut_others_out() -> None:
    gate = make_gate(16)
    inside = [gate.admit("many").__enter__() for _ in range(16)]
    with pytest.raises(QueueFullError):
        gate.admit("many")
    first, second = gate.admit("one").__enter__(), gate.admit("another").__enter__()
    for client in ("many", "one", "another", "a third"):
        with pytest.raises(QueueFullError):
            gate.admit(client)
    first.__exit__(None, None, None)
    with pytest.raises(QueueFullError):
        gate.admit("another")
    with gate.admit("a third"):
        assert gate.num_waiting == 18
    for permit in (*inside, second):
        permit.__exit__(None, None, None)
    assert gate.num_waiting == 0
    with gate.admit("one"), gate.admit("one"):
        assert gate.num_waiting == 2


def test_running_requests_keep_their_place() -> None:
    gate = make_gate(1)
    with gate.admit() as permit:
        permit.mark_running()
        permit.mark_running()
        assert (gate.num_waiting, gate.num_running) == (0, 1)
        with pytest.raises(QueueFullError):
            gate.admit()
    assert (gate.num_waiting, gate.num_running) == (0, 0)


def test_draining_turns_everybody_away_and_keeps_those_inside() -> None:
    gate = make_gate()
    with gate.admit():
        gate.drain()
        with pytest.raises(DrainingError):
            gate.admit()
        assert gate.num_waiting == 1


def full_gates_advice(gate: Gate) -> int:
    with gate.admit(), pytest.raises(QueueFullError) as refusal:
        gate.admit()
    return refusal.value.retry_after_s


def test_advice_follows_how_long_answers_take() -> None:
    clock = Clock()
    gate = make_gate(1, clock)
    assert full_gates_advice(gate) == 1
    for _ in range(30):
        with gate.admit() as permit:
            clock.now_s += 10
            permit.mark_finished()
    assert full_gates_advice(gate) == 10


def test_failures_do_not_shorten_the_advice() -> None:
    clock = Clock()
    gate = make_gate(1, clock)
    for _ in range(30):
        with gate.admit() as permit:
            clock.now_s += 10
            permit.mark_finished()
    for _ in range(30):
        with gate.admit():
            pass
    assert full_gates_advice(gate) == 10


def test_advice_has_a_bound() -> None:
    clock = Clock()
    gate = make_gate(1, clock)
    with gate.admit() as permit:
        clock.now_s += 100_000
        permit.mark_finished()
    assert full_gates_advice(gate) == MAX_RETRY_AFTER_S


@given(st.lists(st.sampled_from(["admit", "run", "leave", "drain"]), max_size=60))
def test_counts_always_add_up(actions: list[str]) -> None:
    gate = make_gate(3)
    inside: list[Permit] = []
    for action in actions:
        if action == "admit":
            try:
                inside.append(gate.admit().__enter__())
            except (QueueFullError, DrainingError):
                assert len(inside) == 3 or gate.is_draining
        elif action == "drain":
            gate.drain()
        elif inside and action == "run":
            inside[0].mark_running()
        elif inside:
            inside.pop(0).__exit__(None, None, None)
        assert gate.num_waiting + gate.num_running == len(inside) <= gate.capacity
        assert min(gate.num_waiting, gate.num_running) >= 0
