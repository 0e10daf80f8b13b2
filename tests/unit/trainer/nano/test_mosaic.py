from collections import Counter
from random import Random

import numpy as np

from trainer.nano.pages.mosaic import SIZES_PX, MosaicRenderer, blank_page


def test_pages_of_many_parts_tell_all_that_they_show(library, corpus):
    renderer = MosaicRenderer(library, corpus, seed=5)
    for _ in range(12):
        page = renderer.render_mosaic()
        assert page.ink.shape[::-1] in SIZES_PX
        assert 0 < len(page.text) < 8000
        marked, written = Counter(c for _, _, c in page.marks), Counter("".join(page.text.split()))
        assert marked <= written  # signs of lists are not marked
        assert marked.total() > 0.9 * written.total()


def test_blank_pages_are_of_many_kinds():
    pages = [blank_page(Random(seed)) for seed in range(60)]
    assert all(page.dtype == np.uint8 and min(page.shape) >= 100 for page in pages)
    assert {int(page.mean() // 86) for page in pages} == {0, 1, 2}
