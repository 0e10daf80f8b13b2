"""`POST /v1/ocr` through the whole app."""

from __future__ import annotations

import base64
import io
import itertools
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from service.engine.fake import FakeEngine
from service.errors import EngineError
from shared.contract.prompts import Task
from tests.support.chat import data_url
from tests.support.fake_engine import SteeredEngine
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, encode, png, running_service

pytestmark = pytest.mark.integration


def document(data: bytes, kind: str = "application/pdf") -> dict[str, Any]:
    return {"type": "document_url", "document_url": data_url(data, kind)}


async def post(service: RunningService, **body: Any) -> httpx.Response:
    return await service.client.post("/v1/ocr", json=body)


async def test_document_is_read_page_by_page_as_markdown() -> None:
    pdf = make_pdf(["one", "two"], size_pt=(144, 72))
    async with running_service(pdf_dpi=100, blank_pages="read") as service:
        answer = (await post(service, model="fake", document=document(pdf))).json()
        read = (await service.ocr(pdf, task="markdown")).json()
    assert [page["markdown"] for page in answer["pages"]] == [page["text"] for page in read["pages"]]
    assert [page["index"] for page in answer["pages"]] == [0, 1]
    assert {tuple(page["dimensions"].items()) for page in answer["pages"]} == {
        (("dpi", 100), ("height", 100), ("width", 200))
    }
    assert answer["model"] == "fake"
    assert answer["document_annotation"] is None
    assert answer["usage_info"] == {"pages_processed": 2, "doc_size_bytes": len(pdf)}
    region = read["pages"][0]["regions"][0]
    corners = zip(("top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y"), region["box_px"], strict=True)
    assert answer["pages"][0]["blocks"] == [
        {"type": "text", **dict(corners), "content": region["text"], "image_id": None}
        | {"table_id": None, "confidence_scores": None}
    ]
    assert answer["pages"][0]["confidence_scores"] is None


async def test_image_is_read_in_each_form() -> None:
    url = data_url(png())
    documents = [
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "document_url", "document_url": url, "document_name": "page.png"},
    ]
    async with running_service() as service:
        answers = [(await post(service, model=None, document=each)).json() for each in documents]
    assert len({answer.pop("id") for answer in answers}) == 3
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["pages"][0]["dimensions"] == {"dpi": 72, "height": 200, "width": 320}


async def test_pages_count_from_zero() -> None:
    pdf = make_pdf(["one", "two", "three", "four"])
    async with running_service() as service:
        every = (await post(service, document=document(pdf))).json()["pages"]
        for pages in ([3, 1], "1,3"):
            chosen = (await post(service, document=document(pdf), pages=pages)).json()["pages"]
            assert chosen == [every[1], every[3]]
        response = await post(service, document=document(pdf), pages=[4])
    assert (response.status_code, response.json()["code"]) == (422, "page_out_of_range")


def drawn() -> bytes:
    """A page with a blue figure from (100, 50) to (200, 150)."""
    image = Image.new("RGB", (999, 999), "white")
    image.paste((0, 0, 255), (100, 50, 200, 150))
    ImageDraw.Draw(image).text((20, 20), "Ships, of which one is blue and one is small", fill="black")
    return encode(image)


@pytest.fixture
def figures_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine answers with a heading, a figure and its caption, then a small figure."""

    def tag(label: str, box: list[int]) -> list[str]:
        return ["<|ref|>", label, "<|/ref|>", "<|det|>", f"[{box}]", "<|/det|>", "\n"]

    def tokens(request: object, adapter: bytes = b"") -> list[str]:
        return [
            *tag("title", [0, 0, 999, 40]),
            "# Ships\n\n",
            *tag("image", [100, 50, 200, 150]),
            *tag("image_caption", [100, 160, 200, 170]),
            "A blue ship.\n\n",
            *tag("image", [300, 300, 310, 390]),
        ]

    monkeypatch.setattr("service.engine.fake.fake_tokens", tokens)


@pytest.mark.usefixtures("figures_are_seen")
async def test_figures_are_linked_listed_and_cut_out() -> None:
    async with running_service() as service:
        response = await post(service, document=document(drawn()), include_image_base64=True)
        plain = (await post(service, document=document(drawn()))).json()["pages"][0]
    page = response.json()["pages"][0]
    assert page["markdown"] == "# Ships\n\n![img-0.jpeg](img-0.jpeg)\n\nA blue ship.\n\n![img-1.jpeg](img-1.jpeg)"
    assert [image["id"] for image in page["images"]] == ["img-0.jpeg", "img-1.jpeg"]
    blue = page["images"][0]
    assert (blue["top_left_x"], blue["top_left_y"], blue["bottom_right_x"], blue["bottom_right_y"]) == (
        100,
        50,
        200,
        150,
    )
    head, _, data = blue["image_base64"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (100, 100))
        assert np.abs(np.asarray(image).astype(int) - (0, 0, 255)).max() < 8
    assert [(block["type"], block["content"], block["image_id"]) for block in page["blocks"]] == [
        ("title", "# Ships", None),
        ("image", "![img-0.jpeg](img-0.jpeg)", "img-0.jpeg"),
        ("caption", "A blue ship.", None),
        ("image", "![img-1.jpeg](img-1.jpeg)", "img-1.jpeg"),
    ]
    assert plain["markdown"] == page["markdown"]
    assert {image["image_base64"] for image in plain["images"]} == {None}


@pytest.mark.usefixtures("figures_are_seen")
async def test_figures_are_limited_in_number_and_size_and_blocks_can_be_left_out() -> None:
    async with running_service() as service:
        for limits in ({"image_limit": 1}, {"image_min_size": 50}):
            page = (await post(service, document=document(drawn()), include_blocks=False, **limits)).json()["pages"][0]
            assert page["markdown"] == "# Ships\n\n![img-0.jpeg](img-0.jpeg)\n\nA blue ship."
            assert len(page["images"]) == 1
            assert page["blocks"] is None


PARTED = [
    *("<|ref|>", "header", "<|/ref|>", "<|det|>", "[[0, 0, 999, 40]]", "<|/det|>", "\n", "Annual report\n\n"),
    *("<|ref|>", "table", "<|/ref|>", "<|det|>", "[[0, 50, 999, 400]]", "<|/det|>", "\n"),
    *("<table><tr><td>ships ", "sunk</td>", "<td>7</td></tr></table>\n\n"),
    *("<|ref|>", "text", "<|/ref|>", "<|det|>", "[[0, 500, 999, 600]]", "<|/det|>", "\n", "Seven ", "ships\n\n"),
    *("<|ref|>", "page_number", "<|/ref|>", "<|det|>", "[[0, 900, 999, 999]]", "<|/det|>", "\n", "12"),
]


async def test_tables_headers_and_footers_are_given_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.fake.fake_tokens", lambda request, adapter=b"": PARTED)
    asked = {"extract_header": True, "extract_footer": True, "confidence_scores_granularity": "word"}
    pdf = make_pdf(["one", "two"])
    async with running_service(blank_pages="read") as service:
        answer = (await post(service, document=document(pdf), table_format="html", **asked)).json()
        piped = (await post(service, document=document(pdf), table_format="markdown", pages=[1], **asked)).json()
        plain = (await post(service, document=document(pdf), pages=[0])).json()["pages"][0]
    first, second = answer["pages"]
    assert first["markdown"] == "[tbl-0.html](tbl-0.html)\n\nSeven ships"
    assert second["markdown"] == "[tbl-1.html](tbl-1.html)\n\nSeven ships"
    assert (first["header"], first["footer"]) == ("Annual report", "12")
    (table,) = first["tables"]
    assert (table["id"], table["format"]) == ("tbl-0.html", "html")
    assert table["content"] == "<table><tr><td>ships sunk</td><td>7</td></tr></table>"
    for scores, text in ((first["confidence_scores"], first["markdown"]), (table, table["content"])):
        words = scores["word_confidence_scores"]
        assert words
        assert all(text[each["start_index"] :].startswith(each["text"]) for each in words)
    assert [each["text"] for each in first["confidence_scores"]["word_confidence_scores"]] == ["Seven", "ships"]
    assert [(block["type"], block["table_id"]) for block in first["blocks"]] == [
        ("header", None), ("table", "tbl-0.html"), ("text", None), ("footer", None)
    ]  # fmt: skip
    (table,) = piped["pages"][0]["tables"]
    assert (table["id"], table["content"]) == ("tbl-0.md", "| ships sunk | 7 |\n| --- | --- |")
    assert table["word_confidence_scores"] is None
    assert (plain["tables"], plain["header"], plain["footer"]) == ([], None, None)
    assert plain["markdown"].startswith("Annual report\n\n<table>")


async def test_headers_cannot_be_taken_out_by_a_model_without_boxes() -> None:
    engine = SteeredEngine(FakeEngine(tasks=(Task.FREE, Task.MARKDOWN)))
    async with running_service(engine) as service:
        for name in ("extract_header", "extract_footer"):
            response = await post(service, document=document(png()), **{name: True})
            problem = response.json()
            assert (response.status_code, problem["code"], problem["param"]) == (400, "unsupported_parameter", name)
        assert not engine.submitted
        assert (await post(service, document=document(png()), table_format="html")).status_code == 200


async def test_a_page_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service() as service:
        infer = service.services.reader._infer
        pages_read = itertools.count(1)

        async def failing(*arguments: Any) -> Any:
            if next(pages_read) % 2 == 0:
                raise EngineError("told to fail")
            return await infer(*arguments)

        monkeypatch.setattr(service.services.reader, "_infer", failing)
        body = {"document": document(make_pdf(["one", "two"])), "confidence_scores_granularity": "page"}
        answer = (await post(service, **body)).json()
        pages = answer["pages"]
        put = await service.client.put("/process", content=make_pdf(["one", "two"]))
    assert [page["status"] for page in pages] == ["ok", "failed"]
    assert (pages[1]["error"]["code"], pages[1]["confidence_scores"]) == ("engine_failed", None)
    assert pages[1]["markdown"] == "<!-- page 2: failed (engine_failed) -->"
    failed = {"index": 1, "status": "failed", "code": "engine_failed", "title": "The engine failed on this request."}
    assert json.loads(answer["document_annotation"]) == {"pages_not_read": [failed]}
    assert (put.status_code, put.json()["code"], put.json()["page"]) == (500, "engine_failed", 2)


async def test_confidence_of_a_page_is_given_if_asked_for() -> None:
    async with running_service() as service:
        body = {"document": document(png()), "confidence_scores_granularity": "page"}
        page = (await post(service, **body)).json()["pages"][0]
    assert page["confidence_scores"] == {
        "average_page_confidence_score": 0.875,
        "minimum_page_confidence_score": 0.5,
        "word_confidence_scores": None,
    }


async def test_what_the_service_does_not_have_is_refused_by_name() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    refused = {
        "bbox_annotation_format": schema,
        "document_annotation_format": schema,
        "document_annotation_prompt": "What is it?",
    }
    async with running_service() as service:
        for name, value in refused.items():
            response = await post(service, document=document(png()), **{name: value})
            problem = response.json()
            assert (response.status_code, problem["code"], problem["param"]) == (400, "unsupported_parameter", name)
        response = await post(service, document={"type": "file", "file_id": "1"})
        assert (response.status_code, response.json()["param"]) == (400, "document.file_id")
        neutral = dict.fromkeys((*refused, "table_format", "extract_footer")) | {
            "extract_header": False,
            "image_limit": None,
        }
        assert (await post(service, document=document(png()), **neutral)).status_code == 200


async def test_requests_that_are_not_valid_have_the_shape_of_mistrals_errors() -> None:
    refused: list[tuple[dict[str, Any], str, list[str | int]]] = [
        (
            {"document": {"type": "image_url", "image_url": "https://example.com/a.png"}},
            "remote_url_not_allowed",
            ["document", "image_url"],
        ),
        (
            {"document": {"type": "document_url", "document_url": "data:,x"}},
            "invalid_data_url",
            ["document", "document_url"],
        ),
        ({"document": {"type": "web"}}, "invalid_field", ["document"]),
        ({}, "invalid_field", ["document"]),
        ({"document": document(png()), "pages": "x"}, "invalid_field", ["pages"]),
        ({"document": document(png()), "pages": [-1]}, "invalid_field", ["pages", 0]),
    ]
    async with running_service() as service:
        for body, code, place in refused:
            response = await post(service, **body)
            problem = response.json()
            assert response.headers["content-type"] == "application/json"
            assert (response.status_code, problem["object"], problem["code"]) == (422, "error", code)
            assert problem["detail"][0]["loc"] == ["body", *place]
        response = await post(service, model="mistral-ocr-latest", document=document(png()))
        assert (response.status_code, response.json()["code"], response.json()["param"]) == (
            404,
            "model_not_found",
            "model",
        )
        assert "detail" not in response.json()
        assert await service.metric('deepsynth_requests_total{code="model_not_found",outcome="client_error"}') == 1
