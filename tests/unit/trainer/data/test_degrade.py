import numpy as np
import pytest

from trainer.data.render.degrade import EFFECTS, degrade, draw_effects


@pytest.fixture
def page():
    image = np.full((120, 200), 255, dtype=np.uint8)
    image[40:60, 30:170] = 0
    image[70:74, 30:120:3] = 0
    return image


@pytest.mark.parametrize("name", list(EFFECTS))
def test_each_effect_changes_the_page_and_keeps_its_kind(page, name):
    spoilt, applied = degrade(page, np.random.default_rng(1), (name,))
    assert applied == (name,)
    assert spoilt.dtype == np.uint8
    assert spoilt.ndim == 2
    assert spoilt.shape != page.shape or not np.array_equal(spoilt, page) or name == "threshold"


@pytest.mark.parametrize("name", ["skew", "perspective"])
def test_turning_cuts_no_ink_off(page, name):
    page[0], page[-1], page[:, 0], page[:, -1] = 0, 0, 0, 0
    spoilt, _ = degrade(page, np.random.default_rng(2), (name,))
    ink = (255 - page.astype(int)).sum()
    assert (255 - spoilt.astype(int)).sum() == pytest.approx(ink, rel=0.12)


def test_threshold_leaves_black_and_white_only(page):
    spoilt, _ = degrade(page, np.random.default_rng(3), ("blur", "threshold"))
    assert set(np.unique(spoilt)) <= {0, 255}


def test_the_input_stays_as_it_was(page):
    before = page.copy()
    degrade(page, np.random.default_rng(4), tuple(EFFECTS))
    np.testing.assert_array_equal(page, before)


def test_the_same_chance_gives_the_same_page(page):
    first, second = (degrade(page, np.random.default_rng(5)) for _ in range(2))
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[0], second[0])


def test_an_unknown_effect_is_an_error(page):
    with pytest.raises(ValueError, match="coffee"):
        degrade(page, np.random.default_rng(6), ("coffee",))


def test_drawn_effects_are_never_none():
    assert all(draw_effects(np.random.default_rng(seed)) for seed in range(50))
