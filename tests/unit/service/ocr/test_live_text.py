from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ocr.live_text import LiveText
from service.ocr.outcome import PageStatus
from service.ocr.reader import LABELS_ARE_TEXT, PAGE_BREAK, PageResult
from shared.contract.prompts import Task
from shared.deepseek_ocr.grounding import parse_grounded

BOX = "<|det|>[[1, 2, 3, 4]]<|/det|>"


def tag(label: str) -> str:
    return f"<|ref|>{label}<|/ref|>{BOX}"


def page_of(number: int, raw: str, task: Task) -> PageResult:
    text = parse_grounded(raw, 100, 100, labels_are_text=task in LABELS_ARE_TEXT).text
    return PageResult(number, PageStatus.OK, 100, 100, text if text.strip() else "")


def shown_of(task: Task, pieces: list[tuple[int, str]], pages: int) -> list[str]:
    """Pieces in their order; each page ends with its last one."""
    live, raw = LiveText(task), dict.fromkeys(range(1, pages + 1), "")
    shown = []
    for index, (page, text) in enumerate(pieces):
        raw[page] += text
        shown.append(live.delta(page, text))
        if page not in [later for later, _ in pieces[index + 1 :]]:
            shown.append(live.ended(page_of(page, raw[page], task)))
    missing = [page for page in raw if page not in {page for page, _ in pieces}]
    return shown + [live.ended(page_of(page, "", task)) for page in missing]


def test_plain_text_is_shown_as_it_comes():
    assert shown_of(Task.FREE, [(1, "a"), (1, " b"), (1, "\n")], 1) == ["a", " b", "\n", ""]


def test_a_page_waits_for_the_one_before():
    assert shown_of(Task.FREE, [(2, "two"), (1, "one"), (3, "three")], 3) == ["", "", "one", "\n\ntwo", "\n\nthree", ""]


def test_selected_pages_are_shown_in_their_order():
    live = LiveText(Task.FREE, (2, 5))
    assert live.delta(5, "five") == ""
    assert live.ended(page_of(5, "five", Task.FREE)) == ""
    assert live.delta(2, "two") == "two"
    assert live.ended(page_of(2, "two", Task.FREE)) == "\n\nfive"


def test_text_with_boxes_is_shown_tag_by_tag():
    pieces = [tag("title"), "\n# A", "\n\n", "<|ref|>", "text<|/ref|>", BOX, "\nB"]
    shown = shown_of(Task.MARKDOWN, [(1, piece) for piece in pieces], 1)
    assert shown == ["", "", "", "# A", "", "", "", "\n\nB"]


def test_text_with_labels_within_the_boxes_tag_is_shown_tag_by_tag():
    first, second = ("<|det|>title [1, 2, 3, 4]<|/det|>", "<|det|>text [1, 2, 3, 4]<|/det|>")
    shown = shown_of(Task.MARKDOWN, [(1, piece) for piece in (first, "# A\n", second, "B")], 1)
    assert shown == ["", "", "# A", "", "\nB"]


def test_pages_without_text_leave_no_gap():
    assert shown_of(Task.FREE, [(1, " "), (2, "two"), (3, "\n"), (4, "four")], 5) == [
        *["", "", "two", "", "", "", "\n\nfour", "", ""]
    ]


def test_text_of_a_page_that_is_withdrawn_stays_and_the_next_page_follows():
    live = LiveText(Task.FREE)
    assert live.delta(1, "invented") == "invented"
    assert live.ended(PageResult(1, PageStatus.UNREADABLE)) == ""
    assert live.delta(2, "read") == "\n\nread"


def test_what_may_become_a_marker_is_held_back():
    shown = shown_of(Task.FREE, [(1, "a <"), (1, "|re"), (1, "d| b"), (1, "<")], 1)
    assert shown == ["a ", "", "<|red| b", "", "<"]


def test_spacing_shown_before_the_first_tag_is_not_shown_again():
    pieces = [(1, "  a\n\n\n"), (1, "\nb"), (1, tag("x")), (1, "c")]
    assert "".join(shown_of(Task.FREE, pieces, 1)) == "  a\n\n\n\nbc"


letters = st.sampled_from(["a", "b c", "\n", "<", "<|", "|>", "é"])
tagged = st.sampled_from([tag("title"), tag("image"), tag("x y")])


@given(
    st.sampled_from([Task.FREE, Task.MARKDOWN, Task.OCR]),
    st.lists(st.tuples(st.integers(1, 3), letters), max_size=20),
)
def test_plain_pieces_join_to_the_documents_text(task: Task, pieces: list[tuple[int, str]]):
    pages = [page_of(page, "".join(text for at, text in pieces if at == page), task).text for page in (1, 2, 3)]
    assert "".join(shown_of(task, pieces, 3)) == PAGE_BREAK.join(filter(None, pages))


@given(
    st.sampled_from([Task.FREE, Task.MARKDOWN, Task.OCR, Task.LOCATE]),
    st.lists(st.tuples(st.integers(1, 3), tagged | letters), max_size=20),
    st.integers(1, 9),
)
def test_pieces_of_tagged_pages_join_to_the_documents_text(task: Task, pieces: list[tuple[int, str]], length: int):
    pieces = [(1, tag("a")), (2, tag("b")), (3, tag("c")), *pieces]
    pages = [page_of(page, "".join(text for at, text in pieces if at == page), task).text for page in (1, 2, 3)]
    cut = [(page, text[at : at + length]) for page, text in pieces for at in range(0, len(text), length)]
    assert "".join(shown_of(task, cut, 3)) == PAGE_BREAK.join(filter(None, pages))


@given(st.lists(st.sampled_from(["a", " ", "\n", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", tag("x")]), max_size=15))
@pytest.mark.parametrize("task", [Task.FREE, Task.OCR])
def test_no_word_of_an_odd_answer_is_lost_at_the_end(task: Task, pieces: list[str]):
    raw = "".join([*pieces, "end"])
    shown = "".join(shown_of(task, [(1, piece) for piece in [*pieces, "end"]], 1))
    assert shown.endswith("end")
    assert len("".join(shown.split())) >= len("".join(page_of(1, raw, task).text.split()))
