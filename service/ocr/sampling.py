"""How a document's tokens are chosen: greedily, or drawn from a seed; and the seed of each of its pages."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from service.engine.protocol import MAX_SEED, MAX_TEMPERATURE
from service.errors import InvalidFieldError

MIN_GIVEN_SEED, MAX_GIVEN_SEED = -(2**63), 2**63 - 1
"""What OpenAI's wire format takes."""
DRAWN_SEEDS = 2**53
"""Seeds that this service draws lie below: JSON's readers keep them exact."""
TEMPERATURE_EXPECTED = f"a number from 0 to {MAX_TEMPERATURE:g}"
SEED_EXPECTED = "a whole number of 64 bits, with its sign"


@dataclass(frozen=True, slots=True)
class Sampling:
    """A document's way of choosing tokens."""

    temperature: float = 0.0
    """0 chooses the most probable token."""
    seed: int | None = None
    """None where nothing is drawn."""

    def page_seed(self, page: int) -> int:
        """The engine's seed for a page: 63 bits of the SHA-256 of `SEED:PAGE`, in decimal.

        Args:
            page: Its number in the document, from 1, so that a selection of pages draws what the whole document does.

        Returns:
            0 to `MAX_SEED`; 0 where nothing is drawn.
        """
        if self.seed is None:
            return 0
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{page}".encode()).digest()[:8], "big") & MAX_SEED


GREEDY = Sampling()


def choose_sampling(temperature: float | None, seed: int | None) -> Sampling:
    """Decide how to choose, drawing a seed where one is needed and none is given.

    Args:
        temperature: None and 0 are greedy, whatever the seed.
        seed: Of what is drawn.

    Returns:
        The way.

    Raises:
        InvalidFieldError: One of them is out of its range.
    """
    temperature = temperature or 0.0
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise InvalidFieldError(public={"field": "temperature", "expected": TEMPERATURE_EXPECTED})
    if seed is not None and not MIN_GIVEN_SEED <= seed <= MAX_GIVEN_SEED:
        raise InvalidFieldError(public={"field": "seed", "expected": SEED_EXPECTED})
    if temperature == 0:
        return GREEDY
    return Sampling(temperature, secrets.randbelow(DRAWN_SEEDS) if seed is None else seed)
