"""Options that change the text of pages, through the whole app: done as asked, or refused where they cannot be."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from service.engine.fake import FakeEngine
from shared.contract.prompts import Task
from tests.support.fake_engine import SteeredEngine
from tests.support.pages import tag
from tests.support.pdf import make_pdf
from tests.support.service import encode, png, running_service

pytestmark = pytest.mark.integration

TABLE = '<table><tr><td>a</td><td>b</td></tr><tr><td colspan="2">1</td></tr></table>'
PIPES = "| a | b |\n| --- | --- |\n| 1 |  |"
FIGURE = "<|ref|>image<|/ref|><|det|>[[100, 50, 200, 150]]<|/det|>\n"
FIRST = (
    f"{tag('header', 1)}Report\n\n{tag('title', 2)}# Ships\n\n{FIGURE}{tag('text', 3)}The ships go\n\n"
    f"{tag('page_number', 4)}1"
)
SECOND = f"{tag('header', 1)}Report\n\n{tag('text', 2)}on here.\n\n{tag('table', 3)}{TABLE}\n\n{tag('footer', 4)}Firm"
TWO_PAGES = make_pdf(["one", "two"])


@pytest.fixture
def two_pages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine answers with two pages in turn, as a model with boxes does."""
    answers = [FIRST, SECOND]

    def tokens(request: Any, adapter: bytes = b"") -> list[str]:
        answers.append(answers.pop(0))
        return [answers[-1]]

    monkeypatch.setattr("service.engine.fake.fake_tokens", tokens)


async def answer_of(data: bytes = TWO_PAGES, **fields: str) -> dict[str, Any]:
    async with running_service(ocr_batch_size=1, blank_pages="read") as service:
        response = await service.ocr(data, task="markdown", **fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.usefixtures("two_pages_are_read")
async def test_text_is_as_the_model_wrote_it_unless_something_is_asked_for() -> None:
    answer = await answer_of()
    assert answer["text"] == (f"Report\n\n# Ships\n\nThe ships go\n\n1\n\nReport\n\non here.\n\n{TABLE}\n\nFirm")
    labels = [[region["label"] for region in page["regions"]] for page in answer["pages"]]
    assert labels == [["header", "title", "image", "text", "page_number"], ["header", "text", "table", "footer"]]
    assert (answer["joins"], answer["figures"]) == (None, None)


@pytest.mark.usefixtures("two_pages_are_read")
async def test_tables_come_in_the_form_that_is_asked_for() -> None:
    answer = await answer_of(table_format="markdown")
    assert PIPES in answer["text"]
    assert "<table>" not in json.dumps(answer)
    (table,) = [region for region in answer["pages"][1]["regions"] if region["label"] == "table"]
    assert table["text"] == PIPES
    assert (await answer_of(table_format="html"))["text"] == (await answer_of())["text"]


@pytest.mark.usefixtures("two_pages_are_read")
async def test_parts_are_left_out_by_their_labels() -> None:
    answer = await answer_of(omit="header, page_number")
    assert answer["text"] == f"# Ships\n\nThe ships go\n\non here.\n\n{TABLE}\n\nFirm"
    assert not {"header", "page_number"} & {each["label"] for page in answer["pages"] for each in page["regions"]}


@pytest.mark.usefixtures("two_pages_are_read")
async def test_pages_are_joined_and_the_answer_says_where() -> None:
    answer = await answer_of(join_pages="true")
    assert answer["joins"] == [{"page": 1, "next_page": 2, "kind": "paragraph"}]
    assert answer["text"] == f"Report\n\n# Ships\n\nThe ships go on here.\n\n1\n\nReport\n\n{TABLE}\n\nFirm"
    assert [page["text"] for page in answer["pages"]] == [page["text"] for page in (await answer_of())["pages"]]
    clean = await answer_of(join_pages="true", omit="header,footer,page_number", table_format="markdown")
    assert clean["text"] == f"# Ships\n\nThe ships go on here.\n\n{PIPES}"


@pytest.mark.usefixtures("two_pages_are_read")
async def test_joined_pages_in_every_format_that_holds_them() -> None:
    async with running_service(ocr_batch_size=1, blank_pages="read") as service:

        async def read(name: str) -> str:
            options = {"task": "markdown", "join_pages": "true", "omit": "header,footer,page_number"}
            return (await service.ocr(TWO_PAGES, format=name, **options)).text

        assert await read("markdown") == f"# Ships\n\nThe ships go on here.\n\n{TABLE}\n"
        assert await read("text") == "Ships\n\nThe ships go on here.\n\na\tb\n1\n"
        page = await read("html")
    assert "<p>The ships go on here.</p>" in page
    assert page.count("<section") == 1


def drawn() -> bytes:
    """A page with a blue figure from (100, 50) to (200, 150)."""
    image = Image.new("RGB", (999, 999), "white")
    image.paste((0, 0, 255), (100, 50, 200, 150))
    ImageDraw.Draw(image).text((20, 20), "Ships, of which one is blue", fill="black")
    return encode(image)


@pytest.mark.usefixtures("two_pages_are_read")
async def test_figures_are_cut_out_and_linked_where_they_were_seen() -> None:
    answer = await answer_of(drawn(), figures="true")
    (figure,) = answer["figures"]
    name = "page-1-figure-1.jpeg"
    assert {key: figure[key] for key in ("name", "page", "label", "box_px")} == {
        "name": name,
        "page": 1,
        "label": "image",
        "box_px": [100, 50, 200, 150],
    }
    head, _, data = figure["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (100, 100))
        assert image.getpixel((50, 50))[2] > 240
    assert answer["text"] == f"Report\n\n# Ships\n\n![{name}]({name})\n\nThe ships go\n\n1"
    assert answer["pages"][0]["text"] == answer["text"]
    async with running_service(blank_pages="read", ocr_batch_size=1) as service:
        # The engine is at the second page now.
        await service.ocr(png(), task="markdown")
        markdown = (await service.ocr(drawn(), task="markdown", figures="true", format="markdown")).text
    assert f"![{name}]({figure['image']})" in markdown


@pytest.mark.usefixtures("two_pages_are_read")
async def test_pages_of_a_stream_are_as_in_its_answer() -> None:
    async with running_service(blank_pages="read", ocr_batch_size=1) as service:
        options = {"task": "markdown", "stream": "true", "table_format": "markdown", "omit": "header"}
        events = (await service.ocr(TWO_PAGES, **options)).text.split("\n\n")
    data = [(event.split("\n")[0], event.partition("data: ")[2]) for event in events if event]
    pages = [json.loads(text) for name, text in data if name == "event: page"]
    (answer,) = [json.loads(text) for name, text in data if name == "event: answer"]
    # A page comes when it is finished, and the second may be first.
    assert sorted(pages, key=lambda page: page["page"]) == answer["pages"]
    assert [PIPES in page["text"] for page in answer["pages"]] == [False, True]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"table_format": "latex", "task": "markdown"}, "table_format"),
        ({"table_format": "html"}, "table_format"),
        ({"omit": "headers", "task": "markdown"}, "omit"),
        ({"omit": "header"}, "omit"),
        ({"figures": "maybe", "task": "markdown"}, "figures"),
        ({"figures": "true", "task": "ocr"}, "figures"),
        ({"figures": "true", "task": "markdown", "format": "text"}, "figures"),
        ({"join_pages": "true", "format": "hocr"}, "join_pages"),
        ({"join_pages": "true", "format": "alto"}, "join_pages"),
        ({"join_pages": "true", "format": "searchable-pdf"}, "join_pages"),
    ],
)
async def test_options_that_would_do_nothing_are_refused(fields: dict[str, str], field: str) -> None:
    async with running_service() as service:
        response = await service.ocr(png(), **fields)
        assert not service.engine.submitted
    assert (response.status_code, response.json()["code"], response.json()["field"]) == (422, "invalid_field", field)
    assert response.json()["expected"]


@pytest.mark.parametrize("field", ["omit", "figures"])
async def test_what_needs_labels_is_refused_for_a_model_without_boxes(field: str) -> None:
    engine = SteeredEngine(FakeEngine(tasks=(Task.FREE, Task.MARKDOWN)))
    async with running_service(engine, blank_pages="read") as service:
        (model,) = (await service.client.get("/v1/models")).json()["data"]
        fields = {"task": "markdown", field: "header" if field == "omit" else "true"}
        refused = await service.ocr(png(), **fields)
        joined = await service.ocr(png(), join_pages="true", table_format="markdown", task="markdown")
    assert model["boxes"] is False
    assert (refused.status_code, refused.json()["field"]) == (422, field)
    assert "no boxes" in refused.json()["expected"]
    assert (joined.status_code, joined.json()["joins"]) == (200, [])


@pytest.mark.usefixtures("two_pages_are_read")
@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (TWO_PAGES, {"join_pages": "true", "omit": "header,footer", "table_format": "markdown"}),
        (drawn(), {"figures": "true"}),
    ],
    ids=["text", "figures"],
)
async def test_result_of_a_job_is_arranged_as_that_of_a_request(
    data: bytes, fields: dict[str, str], tmp_path: Path
) -> None:
    expected = await answer_of(data, **fields)
    async with running_service(ocr_batch_size=1, blank_pages="read", job_dir=tmp_path) as service:
        if "figures" in fields:
            # The engine is at the second page now.
            await service.ocr(png(), task="markdown")
        form = {"files": {"file": data}, "data": {"task": "markdown", **fields}}
        job = (await service.client.post("/jobs", **form)).json()
        async with asyncio.timeout(60):
            while job["state"] not in ("done", "failed"):
                await asyncio.sleep(0.01)
                job = (await service.client.get(f"/jobs/{job['id']}")).json()
        address = f"/jobs/{job['id']}/result"
        answer = (await service.client.get(address)).json()
        refused = await service.client.get(address, params={"format": "hocr"})
        wrong = await service.client.post("/jobs", files={"file": data}, data={"task": "free", "omit": "header"})
    times = ("id", "latency_ms", "timings_ms")
    assert {name: value for name, value in answer.items() if name not in times} == {
        name: value for name, value in expected.items() if name not in times
    }
    assert (refused.status_code, refused.json()["field"]) == (422, next(iter(fields)))
    assert (wrong.status_code, wrong.json()["field"]) == (422, "omit")


@pytest.mark.usefixtures("two_pages_are_read")
@pytest.mark.parametrize("options", [{"omit": "header,page_number"}, {"table_format": "markdown"}, {"figures": "true"}])
async def test_words_keep_their_confidences_where_the_text_moves(options: dict[str, str]) -> None:
    plain = await answer_of(confidence="word", review_threshold="1")
    answer = await answer_of(confidence="word", review_threshold="1", **options)
    for before, page in zip(plain["pages"], answer["pages"], strict=True):
        shown = [word["text"] for word in page["words"]]
        assert all(page["text"][word["start"] : word["end"]] == word["text"] for word in page["words"])
        assert all(word["line"] == page["text"][: word["start"]].count("\n") + 1 for word in page["words"])
        assert {(word["text"], word["confidence"]) for word in page["words"]} <= {
            (word["text"], word["confidence"]) for word in before["words"]
        }
        # Links and rewritten tables have none.
        left_out = {"omit": {"Report", "1"}, "table_format": set(), "figures": set()}[next(iter(options))]
        expected = [word["text"] for word in before["words"] if word["text"] not in left_out]
        assert shown == [word for word in expected if "<" not in word or "table_format" not in options]
        assert [word["text"] for word in page["doubtful_words"]] == shown
        assert page["calibrated"] is before["calibrated"]
