from random import Random

import numpy as np
import pytest

from trainer.nano.corpus.charset import SUPPORTED
from trainer.nano.fonts.library import KINDS
from trainer.nano.pages import books
from trainer.nano.pages.blocks import Paragraph
from trainer.nano.pages.render import LIMITS, PageRenderer, Tier


@pytest.mark.parametrize("tier", list(Tier))
def test_images_stay_within_their_tier(library, corpus, tier):
    renderer = PageRenderer(library, corpus, seed=3)
    limits = LIMITS[tier]
    for _ in range(8):
        page = renderer.render(tier)
        assert page.ink.dtype == np.uint8
        assert page.ink.shape[0] <= limits.height_px
        assert page.ink.shape[1] <= limits.image_width_px
        assert 0 < len(page.text) <= limits.characters + 60
        assert page.ink.min() < 128
        assert limits.size_px[0] <= page.sizes_px[0] <= limits.size_px[1]


@pytest.mark.parametrize("tier", [Tier.LINE, Tier.FEW, Tier.BLOCK])
def test_small_tiers_fit_into_one_view(library, corpus, tier):
    renderer = PageRenderer(library, corpus, seed=4)
    assert all(max(renderer.render(tier).ink.shape) <= 640 for _ in range(20))


def test_crops_reach_from_one_view_to_four_tiles_side_by_side(library, corpus):
    renderer = PageRenderer(library, corpus, seed=4)
    shapes = [renderer.render(Tier.CROP).ink.shape for _ in range(60)]
    assert {-(-width // 640) for _, width in shapes} >= {2, 3, 4}
    assert sum(height <= 640 for height, _ in shapes) > 40


def test_printers_dashes_and_quotes_take_the_place_of_typed_ones():
    texts = {books.typographic('"It\'s -- so," he said--"(\'quite\')"', Random(seed)) for seed in range(40)}
    assert "“It’s—so,” he said—“(‘quite’)”" in texts
    assert len(texts) > 2


def test_books_are_set_in_kinds_that_exist():
    assert set(books.KIND_WEIGHTS) <= set(KINDS)
    assert {books.pick_kind(Random(seed)) for seed in range(60)} == set(books.KIND_WEIGHTS)


def test_a_line_has_no_line_break(library, corpus):
    renderer = PageRenderer(library, corpus, seed=5)
    assert all("\n" not in renderer.render(Tier.LINE).text for _ in range(30))


def test_the_same_seed_gives_the_same_pages(library, corpus):
    first, second = (PageRenderer(library, corpus, seed=9) for _ in range(2))
    for tier in Tier:
        one, other = first.render(tier), second.render(tier)
        assert one.text == other.text
        np.testing.assert_array_equal(one.ink, other.ink)


def test_another_seed_gives_another_page(library, corpus):
    assert (
        PageRenderer(library, corpus, 1).render(Tier.BLOCK).text
        != PageRenderer(library, corpus, 2).render(Tier.BLOCK).text
    )


def test_truth_holds_only_what_the_face_can_draw(library, corpus):
    renderer = PageRenderer(library, corpus, seed=6)
    drawable = set(library.faces[0].characters) | {" ", "\n"}
    assert all(set(renderer.render(Tier.BLOCK).text) <= drawable <= SUPPORTED | {"\n"} for _ in range(10))


def test_a_tighter_bound_on_characters_holds(library, corpus):
    renderer = PageRenderer(library, corpus, seed=7)
    assert all(len(renderer.render(Tier.FEW, max_characters=60).text) <= 70 for _ in range(10))


def test_given_blocks_are_rendered_word_for_word(library, corpus):
    page = PageRenderer(library, corpus, 1).render_blocks([Paragraph("Just this text.")], 400, 200, 20, 30)
    assert page.text == "Just this text."
    assert page.ink.shape == (200, 400)


def test_blocks_that_do_not_fit_are_in_neither_image_nor_truth(library, corpus):
    blocks = [Paragraph("first"), Paragraph("second " * 50)]
    page = PageRenderer(library, corpus, 1).render_blocks(blocks, 300, 60, 20, 10)
    assert page.text.startswith("first")
    assert page.text.count("second") < 50
