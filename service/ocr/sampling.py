"""Checks how a document's tokens are to be chosen, and draws a seed where one is needed and none is given."""

from __future__ import annotations

import secrets

from service.engine.protocol import MAX_TEMPERATURE, SamplingParams
from service.errors import InvalidFieldError

MIN_GIVEN_SEED, MAX_GIVEN_SEED = -(2**63), 2**63 - 1
"""What OpenAI's wire format takes."""
DRAWN_SEEDS = 2**53
"""Bound of the seeds that this service draws, so that JSON readers keep them exact."""
TEMPERATURE_EXPECTED = f"a number from 0 to {MAX_TEMPERATURE:g}"
SEED_EXPECTED = "a whole number of 64 bits, with its sign"


def sampling_params(max_new_tokens: int, temperature: float | None = None, seed: int | None = None) -> SamplingParams:
    """Make a document's parameters.

    Args:
        max_new_tokens: Of each page; checked by the caller.
        temperature: None and 0 are greedy, whatever the seed.
        seed: None: one is drawn if the temperature needs it.

    Raises:
        InvalidFieldError: Temperature or seed is out of its range.
    """
    temperature = temperature or 0.0
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise InvalidFieldError(public={"field": "temperature", "expected": TEMPERATURE_EXPECTED})
    if seed is not None and not MIN_GIVEN_SEED <= seed <= MAX_GIVEN_SEED:
        raise InvalidFieldError(public={"field": "seed", "expected": SEED_EXPECTED})
    if temperature == 0:
        return SamplingParams(max_new_tokens)
    return SamplingParams(max_new_tokens, temperature, secrets.randbelow(DRAWN_SEEDS) if seed is None else seed)
