"""`POST /preview`: a page as a picture."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.support.pdf import make_pdf
from tests.support.service import encode, page_image, png, running_service

pytestmark = pytest.mark.integration


def tiff(count: int) -> bytes:
    first, *others = [page_image(str(number), (300 + number, 200)) for number in range(1, count + 1)]
    return encode(first, "TIFF", save_all=True, append_images=others)


async def test_each_page_of_a_pdf_is_shown_with_its_size_and_the_number_of_pages() -> None:
    async with running_service(pdf_dpi=144) as service:
        for page in (1, 2, 3):
            answer = await service.client.post(
                "/preview", files={"file": make_pdf(["one", "two", "three"])}, data={"pages": str(page)}
            )
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
            assert (answer.headers["x-page-count"], answer.headers["x-page-size"]) == ("3", "400x200")
            with Image.open(io.BytesIO(answer.content)) as picture:
                assert (picture.format, picture.size) == ("JPEG", (400, 200))
        assert "sandbox" in answer.headers["content-security-policy"]
        assert service.services.gate.num_running == 0


async def test_page_of_a_tiff_in_a_document_longer_than_may_be_read_at_once() -> None:
    async with running_service(max_frames=2) as service:
        first = await service.client.post("/preview", files={"file": tiff(5)})
        last = await service.client.post("/preview?pages=5", files={"file": tiff(5)})
    assert (first.headers["x-page-count"], first.headers["x-page-size"]) == ("5", "301x200")
    assert (last.headers["x-page-count"], last.headers["x-page-size"]) == ("5", "305x200")


async def test_large_page_is_reduced_and_its_own_size_reported() -> None:
    async with running_service() as service:
        answer = await service.client.post("/preview", files={"file": png(size=(2400, 3200))})
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (1200, 1600)
    assert answer.headers["x-page-size"] == "2400x3200"


@pytest.mark.parametrize(
    ("data", "fields", "status", "code"),
    [
        (b"GIF89a", {}, 422, "undecodable_file"),
        (b"no image", {}, 415, "unsupported_format"),
        (b"", {}, 422, "empty_file"),
        (make_pdf(["a"], encrypted=True), {}, 422, "pdf_encrypted"),
        (make_pdf(["a"]), {"pages": "2"}, 422, "page_out_of_range"),
        (make_pdf(["a", "b"]), {"pages": "1-2"}, 422, "too_many_pages"),
        (make_pdf(["a"]), {"pages": "x"}, 422, "invalid_field"),
        (make_pdf(["a"]), {"task": "ocr"}, 422, "invalid_field"),
        (make_pdf(["a"]), {"page": "1"}, 422, "invalid_field"),
    ],
)
async def test_what_cannot_be_shown_is_a_problem(data: bytes, fields: dict[str, str], status: int, code: str) -> None:
    async with running_service() as service:
        answer = await service.client.post("/preview", files={"file": ("f", data)}, data=fields)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_previews_take_places_and_are_bounded_as_readings_are() -> None:
    async with running_service(max_concurrent_requests=1, max_upload_bytes=200_000, max_pixels=1_000_000) as service:
        with service.services.gate.admit():
            busy = await service.client.post("/preview", files={"file": png()})
        large = await service.client.post("/preview", files={"file": bytes(300_000)})
        afterwards = await service.client.post("/preview", files={"file": png()})
        pixels = await service.client.post("/preview", files={"file": png(size=(1200, 1000))})
    assert (busy.status_code, busy.json()["code"]) == (429, "queue_full")
    assert (large.status_code, large.json()["code"]) == (413, "upload_too_large")
    assert afterwards.status_code == 200
    assert (pixels.status_code, pixels.json()["code"]) == (413, "too_many_pixels")


async def test_preview_is_described() -> None:
    async with running_service() as service:
        described = (await service.client.get("/openapi.json")).json()["paths"]["/preview"]["post"]
    assert list(described["responses"]["200"]["content"]) == ["image/jpeg"]
    assert set(described["responses"]["200"]["headers"]) == {"X-Page-Count", "X-Page-Size", "X-Page-Turn"}
    properties = described["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(properties) == {"file", "pages", "orientation"}
