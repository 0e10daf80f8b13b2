"""Medians and percentiles by counting are numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from shared.images.histogram import median, percentile, percentile_of_few


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 7), (40, 90)])
@pytest.mark.parametrize("percent", [0, 50, 92, 95, 99.7, 100])
def test_percentiles_are_those_of_numpy(shape, percent):
    chance = np.random.default_rng(5)
    for most in (2, 256):
        values = chance.integers(0, most, shape, dtype=np.uint8)
        assert percentile(values, percent) == np.percentile(values, percent)
        assert median(values) == np.percentile(values, 50, method="inverted_cdf")


@pytest.mark.parametrize("size", [1, 2, 3, 17, 240, 2000])
@pytest.mark.parametrize("percent", [75, 80, 85])
def test_percentiles_round_as_those_of_other_types_do(size, percent):
    values = np.random.default_rng(size).integers(13, 256, size, dtype=np.uint8)
    assert percentile(values, percent, np.float32) == np.percentile(values.astype(np.float32), percent)
    few = values.astype(np.int32) * 3
    assert percentile_of_few(few, percent) == np.percentile(few, percent)


def test_a_part_of_a_page_is_counted_alone():
    page = np.zeros((20, 30), np.uint8)
    page[5:9, 10:14] = 200
    assert percentile(page[5:9, 10:14], 10) == 200
