"""Limits of keys, and of addresses that try keys."""

import contextlib

import pytest

from service.access.key import Key
from service.access.limits import MAX_ADDRESSES, WRONG_KEYS, KeyLimits, WrongKeys
from service.errors import KeyConcurrencyError, KeyRateError, TooManyWrongKeysError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def key(name: str = "a", **limits: float) -> Key:
    return Key.model_validate({"name": name, "sha256": "0" * 64, **limits})


def test_documents_per_minute_over_a_long_time_are_the_limit():
    clock = Clock()
    limits, limited = KeyLimits(clock), key(requests_per_minute=30)
    taken = 0
    for _ in range(6000):
        clock.now_s += 0.1
        with contextlib.suppress(KeyRateError), limits.using(limited):
            taken += 1
    # Ten minutes, and the burst of an idle key.
    assert 300 <= taken <= 306


def test_a_slow_key_may_always_send_one_and_is_told_when_to_retry():
    clock = Clock()
    limits, limited = KeyLimits(clock), key(requests_per_minute=2)
    with limits.using(limited):
        pass
    with pytest.raises(KeyRateError) as error, limits.using(limited):
        pass
    assert error.value.retry_after_s == 30
    clock.now_s += 30
    with limits.using(limited):
        pass


def test_concurrent_documents_are_bounded_and_given_back_when_they_fail():
    limits, limited = KeyLimits(Clock()), key(max_concurrent=2)
    with contextlib.suppress(KeyError), limits.using(limited), limits.using(limited):
        with pytest.raises(KeyConcurrencyError), limits.using(limited):
            pass
        with limits.using(key("other", max_concurrent=1)):
            assert limits.num_running("a") == 2
        raise KeyError
    assert limits.num_running("a") == 0


def test_an_address_that_tries_keys_is_slowed_down_and_others_are_not():
    clock = Clock()
    wrong = WrongKeys(clock)
    for _ in range(WRONG_KEYS):
        wrong.check("10.0.0.1")
        wrong.count("10.0.0.1")
    with pytest.raises(TooManyWrongKeysError) as error:
        wrong.check("10.0.0.1")
    assert error.value.retry_after_s == 6
    wrong.check("10.0.0.2")
    clock.now_s += 6
    wrong.check("10.0.0.1")


def test_addresses_are_forgotten_in_the_end():
    wrong = WrongKeys(Clock())
    for number in range(MAX_ADDRESSES + 50):
        wrong.count(str(number))
    assert len(wrong._buckets) == MAX_ADDRESSES
