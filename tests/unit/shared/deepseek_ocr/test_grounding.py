from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.deepseek_ocr.grounding import GroundedText, Region, parse_grounded

markers = st.sampled_from(["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "[[1,2,3,4]]", "[", "x\n"])
hostile = st.lists(markers | st.text(max_size=5), max_size=20).map("".join)


def tag(label: str, boxes: str) -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{boxes}<|/det|>"


def test_markdown_answers_give_text_and_regions():
    answer = (
        f"{tag('title', '[[100, 50, 900, 100]]')}\n# Report\n\n"
        f"{tag('text', '[[0, 200, 999, 500]]')}\nFirst line\nsecond line.\n\n{tag('image', '[[10,600,20,700]]')}\n"
    )
    assert parse_grounded(answer, 999, 1998) == GroundedText(
        "# Report\n\nFirst line\nsecond line.",
        (
            Region("title", (100, 100, 900, 200), "# Report", 0),
            Region("text", (0, 400, 999, 1000), "First line\nsecond line.", 10),
            Region("image", (10, 1200, 20, 1400), "", 33),
        ),
    )


def test_labels_within_the_boxes_tag_are_read_too():
    """As Unlimited-OCR writes them."""
    title, image = "<|det|>title [333, 201, 558, 230]<|/det|>", "<|det|>image [0, 0, 999, 999]<|/det|>"
    answer = f"{title}QUALITY\nFORM\n{image}\n<|det|>text [1, 2"
    grounded = parse_grounded(answer, 999, 999)
    assert grounded.text == "QUALITY\nFORM"
    assert [(region.label, region.box_px, region.text) for region in grounded.regions] == [
        ("title", (333, 201, 558, 230), "QUALITY\nFORM"),
        ("image", (0, 0, 999, 999), ""),
    ]


@pytest.mark.parametrize("payload", ["[1, 2, 3, 4]", "two words [1, 2, 3, 4]", "title", "", "title [1, 2, 3, 4] more"])
def test_boxes_without_a_label_are_no_tag(payload: str):
    grounded = parse_grounded(f"before <|det|>{payload}<|/det|> after", 999, 999)
    assert grounded.regions == ()
    assert grounded.text == f"before {payload} after"


def test_labels_are_the_text_of_ocr_answers():
    answer = f"{tag('Total', '[[0,0,500,10]]')}\n{tag('42.00', '[[500,0,999,10]]')}\n"
    grounded = parse_grounded(answer, 999, 999, labels_are_text=True)
    assert grounded.text == "Total\n42.00"
    assert [region.text for region in grounded.regions] == ["Total", "42.00"]


def test_text_after_a_tag_goes_before_its_label():
    grounded = parse_grounded(f"{tag('text', '[[0,0,9,9]]')}read", 999, 999, labels_are_text=True)
    assert grounded == GroundedText("read", (Region("text", (0, 0, 9, 9), "read", 0),))


def test_plain_answers_are_untouched():
    assert parse_grounded("  a < b | [1, 2]\n", 10, 10) == GroundedText("  a < b | [1, 2]\n", ())


def test_text_before_the_first_tag_stays():
    assert parse_grounded(f"before {tag('x', '[[0,0,1,1]]')}after", 10, 10).text == "before after"


def test_several_boxes_give_several_regions():
    regions = parse_grounded(tag("column", "[[0,0,499,999],[500,0,999,999]]") + "words", 999, 999).regions
    assert [(region.box_px, region.text) for region in regions] == [
        ((0, 0, 499, 999), "words"),
        ((500, 0, 999, 999), "words"),
    ]


@pytest.mark.parametrize(
    ("boxes", "box_px"),
    [
        ("[[900, 800, 100, 200]]", (100, 200, 900, 800)),
        ("[[-5, 0, 5000, 99999999999]]", (0, 0, 999, 999)),
        ("[1.5,2,3.4,4]", (2, 2, 3, 4)),
        ("[[1,2,3,4]", (1, 2, 3, 4)),
    ],
)
def test_boxes_are_ordered_and_clipped(boxes: str, box_px: tuple[int, int, int, int]):
    assert [region.box_px for region in parse_grounded(tag("x", boxes), 999, 999).regions] == [box_px]


@pytest.mark.parametrize(
    "boxes", ["", "[]", "[[1,2,3]]", "[[1,2,3,4,5]]", "[[a,b,c,d]]", "[[nan,0,inf,1]]", "print(1)"]
)
def test_unreadable_boxes_give_no_region_and_no_text(boxes: str):
    assert parse_grounded(f"{tag('x', boxes)}read", 10, 10) == GroundedText("read", ())


def test_code_in_boxes_is_not_run(tmp_path: Path):
    target = tmp_path / "made"
    parse_grounded(tag("x", f"[[__import__('pathlib').Path({str(target)!r}).touch(),0,0,0]]"), 10, 10)
    assert not target.exists()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<|ref|>Total", "Total"),
        ("<|ref|>Total<|/ref|> due", "Total due"),
        ("<|/det|>a<|det|>b<|/ref|>c<|grounding|>", "abc"),
        ("<|ref|>a<|ref|>b<|/ref|><|det|>[[0,0,1,1]]<|/det|>c", "ac"),
        ("<|ref|>a<|/ref|><|det|>[[1,2,", ""),
        ("<|ref|>a<|/ref|><|det|>words", "awords"),
    ],
)
def test_broken_tags_leave_their_words(answer: str, text: str):
    assert parse_grounded(answer, 10, 10).text == text


def test_an_answer_cut_within_its_boxes_keeps_the_complete_ones():
    grounded = parse_grounded("<|ref|>x<|/ref|><|det|>[[0,0,9,9],[10,1", 999, 999)
    assert grounded.regions == (Region("x", (0, 0, 9, 9), "", 0),)


@given(hostile, st.integers(1, 5000), st.integers(1, 5000), st.booleans())
def test_no_answer_raises_or_leaves_markers_or_the_page(answer: str, width: int, height: int, labels_are_text: bool):
    grounded = parse_grounded(answer, width, height, labels_are_text=labels_are_text)
    assert not any(marker in grounded.text for marker in ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"))
    for x1, y1, x2, y2 in (region.box_px for region in grounded.regions):
        assert 0 <= x1 <= x2 <= width
        assert 0 <= y1 <= y2 <= height


@pytest.mark.parametrize("piece", ["<|ref|>", "[" * 8, "[1," * 8, "<|ref|>a<|/ref|><|det|>", " " * 8, "\n \n"])
def test_long_hostile_answers_are_parsed_at_once(piece: str):
    answer = f"{tag('x', piece * 20_000)}{piece * 20_000}"
    assert len(parse_grounded(answer, 10, 10).regions) <= 1


@given(st.lists(st.sampled_from([" ", "\n", "\n\n\n", "a", "b c", tag("image", "[[0,0,9,9]]")]), max_size=20))
def test_regions_know_where_their_text_begins(pieces: list[str]):
    grounded = parse_grounded("".join(pieces), 10, 10)
    read_before = 0
    words = [piece.split() for piece in pieces]
    for region, index in zip(grounded.regions, [i for i, piece in enumerate(pieces) if "<|" in piece], strict=True):
        read_before = len(
            "".join(
                "".join(each) for each, piece in zip(words[:index], pieces[:index], strict=True) if "<|" not in piece
            )
        )
        assert len("".join(grounded.text[: region.start].split())) == read_before
        assert not region.text or grounded.text[region.start] == region.text[0]


@given(hostile, st.booleans())
def test_text_consists_of_its_sources(answer: str, labels_are_text: bool):
    grounded = parse_grounded(answer, 100, 100, labels_are_text=labels_are_text)
    kept = "".join(answer[start:end] for start, end in grounded.sources)
    assert "".join(kept.split()) == "".join(grounded.text.split())
    assert list(grounded.sources) == sorted(grounded.sources)
