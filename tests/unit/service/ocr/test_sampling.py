from __future__ import annotations

import pytest

from service.engine.protocol import MAX_SEED, SamplingParams
from service.errors import InvalidFieldError
from service.ocr.sampling import DRAWN_SEEDS, MAX_GIVEN_SEED, MIN_GIVEN_SEED, sampling_params


@pytest.mark.parametrize(("temperature", "seed"), [(None, None), (0.0, None), (0.0, 7), (None, 7)])
def test_without_a_temperature_nothing_is_drawn(temperature: float | None, seed: int | None) -> None:
    greedy = SamplingParams(100)
    assert sampling_params(100, temperature, seed) == greedy
    assert greedy.for_page(1) == greedy


def test_a_given_seed_is_kept_and_a_missing_one_is_drawn() -> None:
    assert sampling_params(100, 0.5, 7) == SamplingParams(100, 0.5, 7)
    assert sampling_params(100, 0.5, 0) == SamplingParams(100, 0.5, 0)
    drawn = [sampling_params(100, 0.5).seed for _ in range(8)]
    assert len(set(drawn)) == 8
    assert all(seed is not None and 0 <= seed < DRAWN_SEEDS for seed in drawn)


@pytest.mark.parametrize("temperature", [-0.1, 2.01, float("nan"), float("inf")])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        sampling_params(100, temperature, 1)
    assert refusal.value.public["field"] == "temperature"


@pytest.mark.parametrize("seed", [MIN_GIVEN_SEED - 1, MAX_GIVEN_SEED + 1])
def test_seeds_of_more_than_64_bits_are_refused(seed: int) -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        sampling_params(100, 0.0, seed)
    assert refusal.value.public["field"] == "seed"


def test_each_page_of_each_seed_has_a_seed_of_its_own() -> None:
    given = (MIN_GIVEN_SEED, -1, 0, 1, 11, MAX_GIVEN_SEED)
    seeds = [SamplingParams(1, 1.0, seed).for_page(page).seed for seed in given for page in range(1, 120)]
    assert len(set(seeds)) == len(seeds)
    assert all(seed is not None and 0 <= seed <= MAX_SEED for seed in seeds)


def test_the_seed_of_a_page_is_what_the_documentation_says() -> None:
    # printf 42:3 | sha256sum, its first 16 digits without the highest bit.
    assert SamplingParams(1, 1.0, 42).for_page(3).seed == 0x1943B4BC886DC1E8
