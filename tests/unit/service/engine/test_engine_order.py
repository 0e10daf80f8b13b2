"""The engine takes pages in the order that the scheduler says, whatever the rule is."""

from collections.abc import Iterable

import pytest

from service.engine import batch
from service.engine.protocol import SequenceResult
from service.engine.scheduler import PageCost
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_request

NEW_TOKENS = {"middle": 16, "long": 24, "short": 8}


def order_of_reading() -> list[str]:
    engine = tiny_engine(batch_size=1)
    for name, tokens in NEW_TOKENS.items():
        engine.submit(tiny_request(name, max_new_tokens=tokens))
    return [event.sequence_id for event in drain(engine) if isinstance(event, SequenceResult)]


def shortest_first(waiting: Iterable[PageCost], new: PageCost) -> int | None:
    return sum(cost.kv_tokens <= new.kv_tokens for cost in waiting)


def test_pages_are_read_in_order_of_arrival():
    assert order_of_reading() == list(NEW_TOKENS)


def test_another_rule_for_the_queue_needs_no_change_in_the_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "queue_index", shortest_first)
    assert order_of_reading() == sorted(NEW_TOKENS, key=NEW_TOKENS.__getitem__)
