"""Canvases of lines that nano learns from: each strip shows the line that the truth gives it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shared.images.canvases import LOW_PX, SIDE_PX, pack
from trainer.nano.pages import line_canvases
from trainer.nano.pages.line_canvases import LineCanvases
from trainer.nano.pages.mosaic import MosaicRenderer
from trainer.nano.pages.tables import TableRenderer


def test_truth_has_a_line_for_each_strip_and_its_words_are_the_pages(library, corpus, monkeypatch):
    monkeypatch.setattr(line_canvases, "DEGRADED_SHARE", 0.0)
    counts = []

    def counting(*given):
        canvases = pack(*given)
        counts.extend(len(canvas.strips) for canvas in canvases)
        return canvases

    monkeypatch.setattr(line_canvases, "pack", counting)
    pages = []
    for renderer in (MosaicRenderer(library, corpus, 3).render_mosaic, TableRenderer(library, corpus, 3).render_table):

        def draw(renderer=renderer):
            pages.append(renderer())
            return pages[-1]

        canvases = LineCanvases(draw, 5)
        for _ in range(6):
            sample = canvases.next()
            words = set(pages[-1].text.split())
            height, width = sample.ink.shape
            assert max(height, width) <= SIDE_PX
            assert len(sample.text.split("\n")) in counts
            assert sum(word in words for word in sample.text.split()) > 0.9 * len(sample.text.split())
            assert "".join(character for _, _, character in sample.marks) == "".join(sample.text.split())
            near = [
                int(np.ptp(sample.ink[max(int(y) - 12, 0) : int(y) + 13, max(int(x) - 9, 0) : int(x) + 10].astype(int)))
                for x, y, _ in sample.marks
            ]
            assert np.mean(np.array(near) > 60) > 0.95


def test_low_canvases_have_few_lines(library, corpus, monkeypatch):
    monkeypatch.setattr(line_canvases, "LOW_SHARE", 1.0)
    canvases = LineCanvases(MosaicRenderer(library, corpus, 4).render_mosaic, 2)
    for _ in range(4):
        sample = canvases.next()
        assert sample.ink.shape[0] <= LOW_PX
        assert len(sample.text.split("\n")) <= line_canvases.LOW_LINES[1]


def test_same_seed_gives_the_same_canvases(library, corpus):
    def three(seed):
        canvases = LineCanvases(MosaicRenderer(library, corpus, 4).render_mosaic, seed)
        return [canvases.next() for _ in range(3)]

    for one, other in zip(three(7), three(7), strict=True):
        assert one.text == other.text
        assert np.array_equal(one.ink, other.ink)


def test_page_without_marks_gives_no_canvas(library, corpus, monkeypatch):
    monkeypatch.setattr(line_canvases, "MAX_TRIES", 2)
    page = replace(MosaicRenderer(library, corpus, 4).render_mosaic(), marks=(), text="")
    drawn = []

    def draw():
        drawn.append(page)
        return page

    with pytest.raises(RuntimeError, match="none of 2 pages"):
        LineCanvases(draw, 1).next()
    assert len(drawn) == 2
