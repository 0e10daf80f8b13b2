from __future__ import annotations

import re

import pytest

from service import errors
from service.errors import CapacityError, DeepSynthError, error_classes

CLASSES = error_classes()


def test_codes_are_unique() -> None:
    def count(branch: type[DeepSynthError]) -> int:
        return sum(bool(child.__dict__.get("code")) + count(child) for child in branch.__subclasses__())

    assert count(DeepSynthError) == len(CLASSES) > 25


@pytest.mark.parametrize("code", CLASSES)
def test_class_is_complete(code: str) -> None:
    cls = CLASSES[code]
    assert re.fullmatch(r"[a-z][a-z0-9_]+", code)
    assert cls.title.endswith(".")
    assert 400 <= cls.status <= 599


@pytest.mark.parametrize("code", CLASSES)
def test_docstrings_tree_shows_every_class(code: str) -> None:
    assert CLASSES[code].__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("code", CLASSES)
def test_outcome_follows_the_status(code: str) -> None:
    cls = CLASSES[code]
    expected = {
        429: "rejected",
        503: "unavailable",
        504: "timeout",
        507: "unavailable",
        500: "server_error",
        499: "client_disconnect",
    }
    assert cls.outcome == expected.get(cls.status, "client_error")


def test_capacity_errors_say_when_to_come_back() -> None:
    assert all(cls().retry_after_s >= 1 for cls in CLASSES.values() if issubclass(cls, CapacityError))
    assert {cls.status for cls in CLASSES.values() if issubclass(cls, CapacityError)} == {429, 503, 507}
