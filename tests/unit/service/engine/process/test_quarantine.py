import numpy as np

from service.engine.process import quarantine
from service.engine.process.quarantine import Quarantine, digest_of
from shared.deepseek_ocr.forms import PageViews
from tests.unit.service.engine.standin import PLAN


def views(ink=1, shape=(2, 2, 3), tiles=0):
    return PageViews(PLAN, np.full(shape, ink, np.uint8), np.full((tiles, 1, 1, 3), ink, np.uint8))


def test_a_digest_is_of_pixels_and_shapes():
    assert digest_of([views()]) == digest_of([views()])
    different = [views(), views(2), views(shape=(1, 4, 3)), views(shape=(4, 1, 3)), views(tiles=1)]
    assert len({digest_of([page]) for page in different}) == len(different)
    turned = PageViews(PLAN, np.zeros((4, 2, 3), np.uint8).transpose(1, 0, 2), np.zeros((0, 1, 1, 3), np.uint8))
    assert digest_of([turned]) == digest_of([views(0, (2, 4, 3))])


def test_suspects_are_acquitted_refused_or_forgotten():
    now_s = [0.0]
    pages = Quarantine(10.0, lambda: now_s[0])
    assert pages.is_empty
    pages.suspect([b"a", b"b", b"c"])
    pages.acquit(b"a")
    pages.refuse(b"b")
    assert [pages.is_suspect(each) for each in (b"a", b"b", b"c")] == [False, False, True]
    assert [pages.is_refused(each) for each in (b"a", b"b", b"c")] == [False, True, False]
    now_s[0] = 9.9
    assert not pages.is_empty
    now_s[0] = 10.0
    assert pages.is_empty
    assert not pages.is_refused(b"b")


def test_no_more_pages_are_remembered_than_stated(monkeypatch):
    monkeypatch.setattr(quarantine, "MAX_REMEMBERED_PAGES", 2)
    pages = Quarantine(10.0, lambda: 0.0)
    pages.suspect([b"a", b"b", b"c"])
    assert [pages.is_suspect(each) for each in (b"a", b"b", b"c")] == [False, True, True]


def test_all_pages_of_a_pass_count() -> None:
    assert len({digest_of(pages) for pages in ([views(0)], [views(0), views(1)], [views(1), views(0)])}) == 3
