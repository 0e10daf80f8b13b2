"""POST /ocr in every output format, through the whole app: real image processes, the fake engine, and nano."""

from __future__ import annotations

import io
import json
from typing import Any, cast

import httpx
import pytest
from lxml import etree
from PIL import Image
from pypdf import PdfReader

from service.engine import fake
from service.ocr.formats.registry import FORMATS
from service.reader_parts import build_engine
from tests.support.nano import NANO, needs_nano
from tests.support.pdf import make_pdf
from tests.support.programs import ROOT
from tests.support.service import RunningService, encode, make_settings, page_image, png, running_service

pytestmark = pytest.mark.integration

HOSTILE = "<script>alert(1)</script> \0\x01\x1b]]>&\" <b onclick='x'>word</b> \U0001f600"


async def read(service: RunningService, data: bytes, accept: str | None = None, **fields: str) -> httpx.Response:
    headers = {} if accept is None else {"accept": accept}
    return await service.client.post("/ocr", files={"file": ("My scan.png", data)}, data=fields, headers=headers)


def text_in(output: str, body: bytes) -> str:
    """The words of an answer, as a reader of its format finds them."""
    match output:
        case "json":
            return str(json.loads(body)["text"])
        case "html":
            return "".join(etree.fromstring(body, etree.HTMLParser()).find("body").itertext())
        case "hocr":
            return " ".join(etree.fromstring(body).xpath("//*[@class='ocrx_word']/text()"))
        case "alto":
            return " ".join(etree.fromstring(body).xpath("//@CONTENT"))
        case "searchable-pdf":
            return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(body)).pages)
        case _:
            return body.decode()


@pytest.mark.parametrize("task", ["free", "ocr", "markdown"])
async def test_every_format_has_the_same_words(task: str) -> None:
    async with running_service() as service:
        expected = (await read(service, png(), task=task)).json()["text"].split()
        for output in FORMATS.values():
            by_field = await read(service, png(), format=output.name, task=task)
            by_header = await read(service, png(), output.essence, task=task)
            for response in (by_field, by_header):
                assert response.status_code == 200
                assert response.headers["content-type"] == output.media_type
                assert text_in(output.name, response.content).split() == expected
            if output.name == "json":
                assert "content-disposition" not in by_field.headers
            else:
                assert by_field.content == by_header.content
                name = f'attachment; filename="My scan{output.extension}"'
                assert by_field.headers["content-disposition"] == name


async def test_field_wins_over_the_header() -> None:
    async with running_service() as service:
        response = await read(service, png(), "application/pdf", format="text")
        unacceptable = await read(service, png(), "image/png", format="json")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert unacceptable.status_code == 200


async def test_json_is_as_it_was() -> None:
    async with running_service() as service:
        plain = await service.ocr(png())
        told = await read(service, png(), "*/*", format="json")
    assert plain.headers["content-type"] == told.headers["content-type"] == "application/json"
    assert list(plain.json()) == list(told.json())
    assert plain.content == json.dumps(plain.json(), separators=(",", ":"), ensure_ascii=False).encode()


async def test_accept_that_cannot_be_met_is_406_before_anything_is_read() -> None:
    async with running_service() as service:
        response = await read(service, png(), "image/png, text/event-stream")
        assert service.engine.submitted == []
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["available"] == [each.essence for each in FORMATS.values()]


async def test_unknown_format_is_named_with_those_there_are() -> None:
    async with running_service() as service:
        response = await read(service, png(), format="docx")
    assert (response.status_code, response.json()["field"]) == (422, "format")
    assert response.json()["expected"] == list(FORMATS)


async def test_streams_stay_json_events() -> None:
    async with running_service() as service:
        stream = await read(service, png(), "text/html", stream="true")
        told = await read(service, png(), stream="true", format="json")
        refused = await read(service, png(), stream="true", format="alto")
    for response in (stream, told):
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert "event: answer" in response.text
    assert (refused.status_code, refused.json()["field"]) == (422, "format")


@pytest.mark.parametrize("task", ["free", "markdown", "ocr"])
async def test_hostile_text_is_harmless_in_every_format(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    boxed = ["<|ref|>", HOSTILE, "<|/ref|><|det|>[[1, 2, 900, 500]]<|/det|>", HOSTILE]
    monkeypatch.setattr(fake, "fake_tokens", lambda *_: boxed)
    async with running_service() as service:
        bodies = {name: await read(service, png(), format=name, task=task) for name in FORMATS}
        streamed = await read(service, png(), stream="true", task=task)
    assert {name: response.status_code for name, response in bodies.items()} == dict.fromkeys(FORMATS, 200)
    assert "event: answer" in streamed.text
    for name, response in bodies.items():
        assert "alert(1)" in text_in(name, response.content)
        assert "\U0001f600" in text_in(name, response.content)
        if name in ("html", "hocr", "alto"):
            assert b"<script" not in response.content
            assert b"onclick='x'>" not in response.content


@pytest.mark.parametrize("name", FORMATS)
async def test_pages_of_a_pdf_are_told_apart(name: str) -> None:
    upload = make_pdf(["", "", ""])
    async with running_service() as service:
        response = await read(service, upload, format=name, pages="1,3", blank_pages="read")
    body = response.content
    if name == "text":
        assert body.count(b"\f") == 1
    elif name == "html":
        assert [b'id="page-%d"' % number in body for number in (1, 2, 3)] == [True, False, True]
    elif name == "hocr":
        assert [b'id="page_%d"' % number in body for number in (1, 2, 3)] == [True, False, True]
    elif name == "alto":
        assert etree.fromstring(body).xpath("//@PHYSICAL_IMG_NR") == ["1", "3"]
    elif name == "searchable-pdf":
        texts = [page.extract_text().strip() for page in PdfReader(io.BytesIO(body)).pages]
        assert [bool(text) for text in texts] == [True, False, True]


async def test_jpeg_lies_in_its_pdf_bit_for_bit() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upload = encode(page_image(size=(200, 320)), "JPEG", exif=exif.tobytes())
    async with running_service() as service:
        response = await read(service, upload, format="searchable-pdf", task="ocr")
    (page,) = PdfReader(io.BytesIO(response.content)).pages
    assert page["/Resources"]["/XObject"]["/Image"]._data == upload  # type: ignore[index] # a dictionary
    assert page.mediabox.width > page.mediabox.height
    assert page.extract_text().strip()


async def test_refusals_of_files_are_the_same_in_every_format() -> None:
    files = {"pdf_encrypted": make_pdf(["x"], encrypted=True), "undecodable_file": png()[:200], "empty_file": b""}
    async with running_service() as service:
        for code, data in files.items():
            for name in FORMATS:
                response = await read(service, data, format=name)
                assert (response.status_code, response.json()["code"]) == (422, code)


async def test_openapi_names_every_media_type_and_format() -> None:
    async with running_service() as service:
        schema = (await service.client.get("/openapi.json")).json()
    for path in ("/ocr", "/api/ocr/run"):
        operation = schema["paths"][path]["post"]
        content = operation["responses"]["200"]["content"]
        assert set(content) == {each.essence for each in FORMATS.values()} | {"text/event-stream"}
        assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/OcrAnswer"}
        assert "406" in operation["responses"]
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["properties"]["format"]["enum"] == [*FORMATS, ""]


@needs_nano
async def test_nano_reads_a_page_into_every_format() -> None:
    settings = make_settings(engine="native", device="cpu", model=str(NANO))
    engine = cast("Any", build_engine(settings))
    with Image.open(ROOT / "docs" / "samples" / "sample-block.png") as page:
        sample = encode(page.crop((0, 0, page.width, 110)))  # two lines, as each format reads them again
    async with running_service(engine, kind="native", device="cpu", model=str(NANO)) as service:
        expected = (await read(service, sample)).json()["text"].split()
        assert len(expected) > 10
        for name in FORMATS:
            response = await read(service, sample, format=name)
            assert response.status_code == 200
            assert text_in(name, response.content).split() == expected
