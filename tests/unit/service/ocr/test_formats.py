"""Output formats of a document that was read, each parsed with a library that did not write it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from service.intake.limits import IntakeLimits
from service.ocr.answer import to_page_answer
from service.ocr.formats import alto, hocr, html, markdown, text
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.layout import Block, Line, blocks_of
from service.ocr.formats.markup import plain_text, safe_html, xml_text
from service.ocr.formats.searchable_pdf import text_task
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from service.schemas import OcrAnswer, PageAnswer, PageError, RegionAnswer, TimingsAnswer, UsageAnswer
from shared.contract.prompts import Task
from shared.deepseek_ocr.grounding import Region

NOTHING: Any = None
HOSTILE = (
    "<script>alert(1)</script>\n<img src=x onerror=alert(1)>\n<svg/onload=alert(1)>\n[a](javascript:alert(1))\n"
    "<a href='javascript:alert(1)'>b</a>\n<td onclick=alert(1)>c</td>\n<style>*{}</style>\n<!-- --><![CDATA[ ]]>\n"
    "<iframe src=//x></iframe>\n\0\x01\x0b\x0c\x1b[31m\x7f\ufffe\n]]>&amp;\"'\u202e"
)


def page(
    text_: str = "One two\nthree", *regions: RegionAnswer, number: int = 1, size: tuple[int, int] = (400, 200)
) -> Any:
    return PageAnswer(
        page=number,
        status="ok",
        text=text_,
        width_px=size[0],
        height_px=size[1],
        finish_reason="stop",
        confidence=0.75,
        regions=list(regions),
    )


def region(text_: str, box_px: tuple[int, int, int, int] = (10, 20, 210, 60), label: str = "text") -> RegionAnswer:
    return RegionAnswer(label=label, box_px=box_px, text=text_)


def document(*pages: PageAnswer, task: Task = Task.FREE, name: str = "scan.png") -> ReadDocument:
    answer = OcrAnswer(
        id="ocr-1",
        status="ok",
        text="\n\n".join(each.text for each in pages),
        model_id="nano",
        seed=None,
        finish_reason="stop",
        confidence=0.75,
        latency_ms=1.0,
        timings_ms=TimingsAnswer(receive=0, decode=0, queue=0, encode=0, prefill=0, generate=0),
        usage=UsageAnswer(vision_tokens=1, prompt_tokens=1, completion_tokens=1),
        pages=list(pages),
    )
    return ReadDocument(answer, task, b"", name, IntakeLimits())


async def written(output: Any, read: ReadDocument) -> bytes:
    return bytes(await output.FORMAT.render(read, NOTHING))


async def test_plain_text_separates_pages_with_a_form_feed() -> None:
    read = document(page("one\ntwo"), page("three\f\x07", number=2))
    assert await written(text, read) == b"one\ntwo\n\x0cthree\n\n"


async def test_markdown_is_the_models_text() -> None:
    read = document(page("# One\n\n- a"), page("<table></table>", number=2), task=Task.MARKDOWN)
    assert await written(markdown, read) == b"# One\n\n- a\n\n<table></table>\n"


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("# Title\n\nA **bold** word", "Title\n\nA bold word"),
        ("1. one\n2. two\n\n7) seven", "1. one\n2. two\n\n7. seven"),
        ("- a\n- b", "- a\n- b"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a\tb\n1\t2"),
        ("<table>\n<tr><td>a\nb</td><td>c</td></tr>\n<tr><td>d<br>e</td><td></td></tr>\n</table>", "a b\tc\nd e"),
        ("first\nsecond", "first\nsecond"),
        ("<center>caption</center>", "caption"),
        (r"\( a_{1} \) and \[ x \]", r"\( a_{1} \) and \[ x \]"),
        ("if a <b> c < d & e", "if a  c < d & e"),
        ("<name> <https://x.org>", "<name> <https://x.org>"),
        ("    indented", "indented"),
        ("[1]: http://x.org", "[1]: http://x.org"),
        ("a\n---\nb", "a\n\nb"),
    ],
)
def test_marks_are_left_out_of_plain_text_and_words_are_not(given_: str, expected: str) -> None:
    assert plain_text(given_, is_markdown=True) == expected
    assert plain_text(given_, is_markdown=False) == given_


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements_of(markup: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed(markup)
    return parser.found


async def test_html_is_rendered_markdown_with_tables_as_the_model_gives_them() -> None:
    table = '<table><tr><td colspan="2">a</td></tr><tr><td>b</td><td>c</td></tr></table>'
    read = document(page(f"# Title\n\n{table}"), page("next", number=2), task=Task.MARKDOWN, name="a <b>.pdf")
    markup = (await written(html, read)).decode()
    assert "<h1>Title</h1>" in markup
    assert '<td colspan="2">a</td>' in markup
    assert "<title>a &lt;b&gt;.pdf</title>" in markup
    assert [attributes["id"] for tag, attributes in elements_of(markup) if tag == "section"] == ["page-1", "page-2"]


async def test_html_of_plain_text_keeps_lines_and_shows_every_sign() -> None:
    markup = (await written(html, document(page("# no title\n  1 < 2\n<b>")))).decode()
    assert '<p class="lines"># no title\n  1 &lt; 2\n&lt;b&gt;</p>' in markup


@pytest.mark.parametrize("task", [Task.FREE, Task.MARKDOWN])
async def test_no_script_survives_in_html(task: Task) -> None:
    frame = {tag for tag, _ in elements_of((await written(html, document(page("safe"), task=task))).decode())}
    read = document(page(HOSTILE), task=task, name=HOSTILE)
    for tag, attributes in elements_of((await written(html, read)).decode()):
        assert tag in frame | {"a", "br"}
        assert not any(name.startswith("on") for name in attributes)
        assert not str(attributes.get("href", "")).startswith("javascript")


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [
                "<",
                ">",
                "/",
                "script",
                "b",
                "td",
                "svg",
                " ",
                "onload=",
                '"',
                "'",
                "\n",
                "a",
                "`",
                "&",
                ";",
                "<!--",
                "-->",
                "javascript:",
                "[",
                "](",
                ")",
                "\0",
                "href=",
            ]
        ),
        max_size=40,
    ).map("".join)
)
def test_safe_html_has_named_elements_alone(given_: str) -> None:
    for tag, attributes in elements_of(safe_html(given_)):
        assert tag not in {"script", "svg", "style", "img", "iframe"}
        assert set(attributes) <= {"href", "rel", "start", "align", "colspan", "rowspan"}
        assert not str(attributes.get("href", "")).lower().startswith("javascript")


ALTO = {"alto": alto.NAMESPACE}
XHTML = {"x": "http://www.w3.org/1999/xhtml"}


def strict(data: bytes) -> Any:
    return etree.fromstring(data, etree.XMLParser(recover=False, resolve_entities=False, no_network=True))


async def test_alto_has_what_its_schema_asks_for() -> None:
    figure = region("", (0, 100, 50, 150), "image")
    read = document(page("One two\n\nthree", region("One two"), figure), page("rest", number=4))
    root = strict(await written(alto, read))
    assert root.tag == f"{{{alto.NAMESPACE}}}alto"
    assert [child.tag.rpartition("}")[2] for child in root] == ["Description", "Layout"]
    description = root[0]
    assert [child.tag.rpartition("}")[2] for child in description] == [
        "MeasurementUnit",
        "sourceImageInformation",
        "Processing",
        "Processing",
    ]
    assert description.findtext("alto:MeasurementUnit", namespaces=ALTO) == "pixel"
    assert "estimated" in description[3].findtext("alto:processingStepDescription", namespaces=ALTO)
    pages = root.findall("alto:Layout/alto:Page", ALTO)
    assert [(each.get("PHYSICAL_IMG_NR"), each.get("WIDTH"), each.get("HEIGHT"), each.get("PC")) for each in pages] == [
        ("1", "400", "200", "0.7500"),
        ("4", "400", "200", "0.7500"),
    ]
    blocks = list(pages[0].find("alto:PrintSpace", ALTO))
    assert [block.tag.rpartition("}")[2] for block in blocks] == ["TextBlock", "Illustration", "TextBlock"]
    assert [blocks[0].get(name) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT")] == ["10", "20", "200", "40"]
    line = blocks[0].find("alto:TextLine", ALTO)
    assert [child.tag.rpartition("}")[2] for child in line] == ["String", "SP", "String"]
    assert [word.get("CONTENT") for word in line.findall("alto:String", ALTO)] == ["One", "two"]
    identifiers = root.xpath("//@ID")
    assert len(identifiers) == len(set(identifiers))


async def test_hocr_has_pages_blocks_lines_and_words_with_boxes() -> None:
    read = document(page("One two\n\nthree", region("One two"), region("", label="image")), name='a"b.png')
    root = strict(await written(hocr, read))
    metas = {meta.get("name"): meta.get("content") for meta in root.findall(".//x:meta", XHTML)}
    assert metas["ocr-system"] == "DeepSynth OCR nano"
    assert "estimated" in metas["x-positions"]
    used = set(root.xpath("//@class"))
    assert used <= set(metas["ocr-capabilities"].split())
    (sheet,) = root.xpath("//x:div[@class='ocr_page']", namespaces=XHTML)
    assert sheet.get("title") == 'image "a\'b.png"; bbox 0 0 400 200; ppageno 0; x_wconf 75.00'
    (first, *_) = root.xpath("//x:div[@class='ocr_carea']", namespaces=XHTML)
    assert first.get("title") == "bbox 10 20 210 60"
    assert ["".join(line.itertext()) for line in root.xpath("//*[@class='ocr_line']")] == ["One two", "three"]
    assert all(
        re.fullmatch(r"bbox \d+ \d+ \d+ \d+", word.get("title")) for word in root.xpath("//*[@class='ocrx_word']")
    )


@pytest.mark.parametrize("task", [Task.FREE, Task.MARKDOWN])
@pytest.mark.parametrize("output", [hocr, alto])
async def test_hostile_text_gives_well_formed_xml(output: Any, task: Task) -> None:
    read = document(page(HOSTILE, region(HOSTILE)), task=task, name=HOSTILE)
    root = strict(await written(output, read))
    assert not root.xpath("//*[local-name()='script' or local-name()='img' or local-name()='svg']")
    content = " ".join(root.xpath("//@CONTENT")) if output is alto else "".join(root.itertext())
    assert "alert(1)" in content


@settings(max_examples=50)
@given(st.text(max_size=60), st.sampled_from([Task.FREE, Task.MARKDOWN]))
def test_any_text_gives_well_formed_xml(given_: str, task: Task) -> None:
    read = document(page(given_, region(given_)), task=task, name=given_)
    strict(alto.render(read))
    strict(hocr.render(read))


def lines_of(blocks: list[Block]) -> list[Line]:
    return [line for block in blocks for line in block.lines]


def test_words_with_boxes_are_where_they_are() -> None:
    known = region("Two words").model_copy(update={"words_px": ((10, 20, 60, 60), (150, 20, 210, 60))})
    (line,) = lines_of(blocks_of(page("Two words", known), is_markdown=False))
    assert [word.box_px for word in line.words] == [(10, 20, 60, 60), (150, 20, 210, 60)]
    unsure = known.model_copy(update={"words_px": ((10, 20, 60, 60),)})
    (line,) = lines_of(blocks_of(page("Two words", unsure), is_markdown=False))
    assert [word.text for word in line.words] == ["Two", "words"]


def test_page_without_boxes_is_one_block_of_even_lines() -> None:
    (block,) = blocks_of(page("One two\nthree\n\nfour"), is_markdown=False)
    assert block.box_px == (0, 0, 400, 200)
    assert [line.box_px for line in block.lines] == [(0, 0, 400, 67), (0, 67, 286, 133), (0, 133, 229, 200)]
    assert [(word.text, word.box_px) for word in block.lines[0].words] == [
        ("One", (0, 0, 171, 67)),
        ("two", (229, 0, 400, 67)),
    ]


def test_text_without_a_box_goes_between_its_neighbours() -> None:
    sheet = page(
        "title\n\nfirst\nunplaced words\nsecond",
        region("first", (0, 50, 400, 80)),
        region("second", (0, 150, 400, 180)),
    )
    blocks = blocks_of(sheet, is_markdown=False)
    assert [" ".join(line.text for line in block.lines) for block in blocks] == [
        "title",
        "first",
        "unplaced words",
        "second",
    ]
    assert [block.box_px for block in blocks] == [
        (0, 0, 400, 50),
        (0, 50, 400, 80),
        (0, 80, 400, 150),
        (0, 150, 400, 180),
    ]


def test_text_with_several_boxes_is_written_once() -> None:
    sheet = page("total", *(region("total", (0, top, 90, top + 20)) for top in (10, 50, 90)))
    assert [line.text for line in lines_of(blocks_of(sheet, is_markdown=False))] == ["total"]


def test_equal_paragraphs_keep_a_box_each() -> None:
    sheet = page("same\n\nsame", region("same", (0, 0, 90, 20)), region("same", (0, 50, 90, 70)))
    assert [block.box_px for block in blocks_of(sheet, is_markdown=False)] == [(0, 0, 90, 20), (0, 50, 90, 70)]


def test_paragraph_in_one_line_is_wrapped_to_the_rows_of_its_box() -> None:
    words = "the quick brown fox jumps over the lazy dog " * 6
    sheet = page(words, region(words, (0, 0, 600, 120)), size=(600, 120))
    lines = lines_of(blocks_of(sheet, is_markdown=False))
    assert 4 <= len(lines) <= 6
    assert " ".join(line.text for line in lines).split() == words.split()
    assert lines[-1].box_px[3] == 120


@pytest.mark.parametrize("given_", ["שלום עולם", "مرحبا بالعالم", "123 שלום עולם"])
def test_right_to_left_lines_begin_at_the_right(given_: str) -> None:
    (line,) = lines_of(blocks_of(page(given_), is_markdown=False))
    assert line.is_rtl
    assert [word.text for word in line.words] == given_.split()
    assert line.words[0].box_px[2] == 400
    assert line.words[-1].box_px[0] == 0


def test_wide_characters_take_twice_the_room() -> None:
    (line,) = lines_of(blocks_of(page("日本 ab"), is_markdown=False))
    first, second = line.words
    assert first.box_px[2] - first.box_px[0] == pytest.approx(2 * (second.box_px[2] - second.box_px[0]), abs=2)


@settings(max_examples=100)
@given(st.lists(st.text(max_size=20), max_size=6), st.data())
def test_every_word_is_placed_once_whatever_the_boxes(texts: list[str], data: st.DataObject) -> None:
    whole = "\n\n".join(texts)
    boxed = [each for each in texts if data.draw(st.booleans())]
    boxes = data.draw(
        st.lists(
            st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(0, 200)] * 2), min_size=len(boxed), max_size=len(boxed)
        )
    )
    regions = [
        region(each, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
        for each, (x1, x2, y1, y2) in zip(boxed, boxes, strict=True)
    ]
    placed = lines_of(blocks_of(page(whole, *regions), is_markdown=False))
    expected = xml_text(plain_text(whole, is_markdown=False))
    assert "".join("".join(line.text.split()) for line in placed) == "".join(expected.split())
    for line in placed:
        assert line.text.split() == [word.text for word in line.words]


def test_searchable_pdf_gets_every_line_of_every_page() -> None:
    read = document(page("# One\n\ntwo"), page("", number=3), task=Task.MARKDOWN)
    task = text_task(read)
    assert [(each.page, [line.text for line in each.lines]) for each in task.pages] == [(1, ["One", "two"]), (3, [])]


async def test_page_that_failed_has_no_size_and_no_text() -> None:
    error = PageError(code="undecodable_file", title="The file is damaged.", retryable=False)
    failed = PageAnswer(
        page=2, status="failed", error=error, text="", width_px=None, height_px=None, finish_reason=None,
        confidence=None, regions=[],
    )  # fmt: skip
    read = document(page("one"), failed)
    assert (await written(text, read)) == b"one\n\x0c\n"
    assert "could not be read: The file is damaged. (undecodable_file)" in (await written(html, read)).decode()
    sheet = strict(await written(alto, read)).findall("alto:Layout/alto:Page", ALTO)[1]
    assert (dict(sheet.attrib), len(sheet)) == (
        {"ID": "page_2", "PHYSICAL_IMG_NR": "2", "PAGECLASS": "failed"},
        0,
    )
    sheet = strict(await written(hocr, read)).xpath("//x:div[@class='ocr_page']", namespaces=XHTML)[1]
    assert sheet.get("title") == 'image "scan.png"; bbox 0 0 0 0; ppageno 1'
    assert [each.page for each in text_task(read).pages] == [1]


def test_lone_surrogates_become_replacement_characters() -> None:
    regions = (Region("a\udc00", (0, 0, 1, 1), "b\ud800", 0),)
    result = PageResult(1, PageStatus.OK, 10, 10, "\ud83d\ude00 c\ud800", regions)
    answer = to_page_answer(result)
    assert (answer.text, answer.regions[0].label, answer.regions[0].text) == (
        "\U0001f600 c\ufffd",
        "a\ufffd",
        "b\ufffd",
    )
    answer.model_dump_json()
