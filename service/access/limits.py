"""How much a key may use: documents per minute and at the same time; how many wrong keys an address may try."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.access.key import Key
from service.errors import KeyConcurrencyError, KeyRateError, TooManyWrongKeysError

BURST_S = 10.0
"""A key that was idle may send the documents of that many seconds at once, and always one."""
WRONG_KEYS = 20
"""Wrong keys that an address may send at once; later ones at `WRONG_KEYS_PER_S`."""
WRONG_KEYS_PER_S = 1 / 6
MAX_ADDRESSES = 10_000
MAX_RETRY_AFTER_S = 60


@dataclass(slots=True)
class _Bucket:
    """Tokens that fill up with time."""

    tokens: float
    at_s: float

    def fill(self, now_s: float, per_s: float, most: float) -> None:
        self.tokens = min(most, self.tokens + (now_s - self.at_s) * per_s)
        self.at_s = now_s


def _retry_after_s(missing: float, per_s: float) -> int:
    return min(max(math.ceil(missing / per_s), 1), MAX_RETRY_AFTER_S)


class KeyLimits:
    """Counts what each key uses, by its name: a new secret or a new limit does not start a new count."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def using(self, key: Key) -> Iterator[None]:
        """Count a document until the block ends.

        Args:
            key: Whose limits apply.

        Yields:
            Nothing.

        Raises:
            KeyConcurrencyError: The key has as many in work as it may.
            KeyRateError: The key has sent as many as it may; the error says when to retry.
        """
        if key.max_concurrent is not None and self._running[key.name] >= key.max_concurrent:
            raise KeyConcurrencyError(public={"limit": key.max_concurrent})
        if key.requests_per_minute is not None:
            self._take(key.name, key.requests_per_minute)
        self._running[key.name] += 1
        try:
            yield
        finally:
            self._running[key.name] -= 1
            if not self._running[key.name]:
                del self._running[key.name]

    def num_running(self, name: str) -> int:
        """Documents that a key has in work."""
        return self._running[name]

    def _take(self, name: str, per_minute: float) -> None:
        per_s, now_s = per_minute / 60, self._clock()
        most = max(1.0, per_s * BURST_S)
        bucket = self._buckets.setdefault(name, _Bucket(most, now_s))
        bucket.fill(now_s, per_s, most)
        if bucket.tokens < 1:
            raise KeyRateError(
                retry_after_s=_retry_after_s(1 - bucket.tokens, per_s), public={"limit_per_minute": per_minute}
            )
        bucket.tokens -= 1


class WrongKeys:
    """Slows down who tries keys, by address. Bounded: the addresses seen longest ago are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise a `TooManyWrongKeysError` if the address has sent too many wrong keys."""
        bucket = self._buckets.get(address)
        if bucket is None:
            return
        bucket.fill(self._clock(), WRONG_KEYS_PER_S, WRONG_KEYS)
        if bucket.tokens < 1:
            raise TooManyWrongKeysError(retry_after_s=_retry_after_s(1 - bucket.tokens, WRONG_KEYS_PER_S))

    def count(self, address: str) -> None:
        """Count a wrong key."""
        bucket = self._buckets.setdefault(address, _Bucket(WRONG_KEYS, self._clock()))
        self._buckets.move_to_end(address)
        bucket.fill(self._clock(), WRONG_KEYS_PER_S, WRONG_KEYS)
        bucket.tokens -= 1
        while len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
