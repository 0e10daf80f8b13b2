"""A page's text is cut at the model's boxes and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.ocr.pieces import pieces_of, with_pieces
from shared.deepseek_ocr.grounding import Region, tidied
from tests.support.pages import grounded_page, tag

WORDS = st.text(st.sampled_from("ab1 .\n\t"), max_size=8)
PAGES = st.lists(st.tuples(st.sampled_from(["", "title", "text", "image", "header"]), WORDS), max_size=6)


@given(PAGES)
def test_pieces_join_to_the_page(parts: list[tuple[str, str]]) -> None:
    answer = "".join((tag(label, n) if label else "") + text for n, (label, text) in enumerate(parts))
    page = grounded_page(answer)
    pieces = pieces_of(page.text, page.regions)
    assert "".join(piece.text for piece in pieces) == page.text
    assert [region for piece in pieces for region in piece.regions] == list(page.regions)
    again = with_pieces(page, pieces)
    assert again.text == tidied(page.text, [])[0]

    def places(regions: Sequence[Region]) -> list[tuple[Region, str]]:
        """A region without text may move within white space, and blank lines at its end may be joined."""
        return [
            (replace(each, start=0, text=" ".join(each.text.split())), "".join(page.text[: each.start].split()))
            for each in regions
        ]

    assert places(again.regions) == places(page.regions)


def test_text_outside_of_boxes_and_text_with_several_is_kept() -> None:
    page = grounded_page(
        "before\n\n<|ref|>text<|/ref|><|det|>[[1, 1, 9, 9], [20, 20, 30, 30]]<|/det|>\nin both\n\n"
        "<|ref|>image<|/ref|><|det|>[[2, 2, 3, 3]]<|/det|>\n<|ref|>text<|/ref|><|det|>[[4, 4, 5, 5]]<|/det|>\nlast"
    )
    pieces = pieces_of(page.text, page.regions)
    assert [(piece.text, piece.label, len(piece.regions)) for piece in pieces] == [
        ("before\n\n", None, 0),
        ("in both\n\n", "text", 2),
        ("", "image", 1),
        ("last", "text", 1),
    ]
    without = with_pieces(page, [pieces[0], pieces[3]])
    assert (without.text, [(each.text, each.start) for each in without.regions]) == ("before\n\nlast", [("last", 8)])
