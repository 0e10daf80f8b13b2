"""`PUT /process` through the whole app, as Open WebUI calls it."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest

from service.ocr.outcome import PageStatus
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, png, running_service

pytestmark = pytest.mark.integration


async def put(service: RunningService, data: bytes, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.client.put("/process", content=data, headers=names)


async def test_each_page_is_a_document_that_knows_where_it_is_from() -> None:
    pdf = make_pdf(["one", "two"])
    name = "Übersicht 2026.pdf"
    async with running_service() as service:
        read = (await service.ocr(pdf)).json()
        response = await put(
            service,
            pdf,
            content_type="application/pdf",
            x_filename=quote(name),
            authorization="Bearer anything",
        )
    assert response.status_code == 200
    loaded = response.json()
    assert len({page["metadata"].pop("answer_id") for page in loaded}) == 1
    assert loaded == [
        {
            "page_content": page["text"],
            "metadata": {
                "source": name,
                "page": number,
                "page_label": str(number + 1),
                "total_pages": 2,
                "model_id": "fake",
                "finish_reason": "stop",
                "confidence": 0.875,
            },
        }
        for number, page in enumerate(read["pages"])
    ]


async def test_type_and_name_are_not_needed_and_not_believed() -> None:
    async with running_service() as service:
        plain = (await put(service, png())).json()
        odd = (await put(service, png(), content_type="text/html", x_filename="../a.pdf")).json()
    assert plain[0]["page_content"] == odd[0]["page_content"]
    assert (plain[0]["metadata"]["source"], odd[0]["metadata"]["source"]) == ("", "a.pdf")


async def test_document_without_text_is_422() -> None:
    async with running_service() as service:
        response = await put(service, make_pdf(["", ""]))
        assert await service.metric('deepsynth_requests_total{code="no_text",outcome="client_error"}') == 1
    assert (response.status_code, response.json()["code"]) == (422, "no_text")


async def test_only_pages_with_text_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["first"], [" "], ["third"]])
    monkeypatch.setattr("service.engine.fake.fake_tokens", lambda request, adapter=b"": next(answers))
    async with running_service(ocr_batch_size=1) as service:
        pages = (await put(service, make_pdf(["a", "b", "c"]))).json()
    assert [(page["page_content"], page["metadata"]["page"]) for page in pages] == [("first", 0), ("third", 2)]
    assert {page["metadata"]["total_pages"] for page in pages} == {3}


async def test_errors_are_problems_with_a_stable_code() -> None:
    data = png()
    async with running_service(max_upload_bytes=len(data) + 1024) as service:
        assert (await put(service, data + b"\0" * 1024)).status_code == 200
        for body, status, code in (
            (data + b"\0" * 1025, 413, "upload_too_large"),
            (b"", 422, "empty_file"),
            (b"junk", 415, "unsupported_format"),
        ):
            response = await put(service, body)
            assert (response.status_code, response.json()["code"]) == (status, code)
            assert response.headers["content-type"] == "application/problem+json"
        assert (await service.client.post("/process", content=data)).status_code == 405
        assert service.services.gate.num_waiting + service.services.gate.num_running == 0


async def test_a_document_that_shows_no_text_to_trust_is_told_apart_from_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses = iter([PageStatus.BLANK, PageStatus.UNREADABLE, PageStatus.UNREADABLE])
    monkeypatch.setattr("service.ocr.reader.status_of", lambda *_, **__: next(statuses))
    async with running_service(ocr_batch_size=1) as service:
        response = await put(service, make_pdf(["a", "b", "c"]))
    assert (response.status_code, response.json()["code"]) == (422, "unreadable")
    assert len(response.json()["pages"]) == 2
