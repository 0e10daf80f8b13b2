"""POST /ocr through the whole app: real decoding processes, the fake engine, httpx's ASGI transport."""

from __future__ import annotations

import base64
import encodings
import io
import json

import pytest
from PIL import Image

from service.engine.fake import FakeEngine
from service.routes.form import MAX_FIELDS
from shared.contract.prompts import Task, prompt_for
from shared.images.raster import reads_heic
from tests.support.fake_engine import SteeredEngine
from tests.support.pdf import make_pdf
from tests.support.scene import HEIC
from tests.support.service import RunningService, encode, page_image, png, running_service

pytestmark = pytest.mark.integration

LEAKS = ("Traceback", "Error(", "/service/", "0x", "PIL", "pydantic", "starlette", "secret")


async def test_page_is_read() -> None:
    async with running_service() as service:
        response = await service.ocr(png())
        again = await service.ocr(png())
        other = await service.ocr(png("Another page"))
    answer = response.json()
    assert response.status_code == 200
    assert list(answer) == [
        "id",
        "status",
        "text",
        "model_id",
        "seed",
        "finish_reason",
        "confidence",
        "latency_ms",
        "timings_ms",
        "usage",
        "pages",
        "joins",
        "figures",
    ]
    assert list(answer["timings_ms"]) == ["receive", "decode", "queue", "encode", "prefill", "generate"]
    assert answer["text"] == again.json()["text"] != other.json()["text"]
    assert answer["id"] != again.json()["id"]
    assert (answer["model_id"], answer["finish_reason"], answer["confidence"]) == ("fake", "stop", 0.875)
    assert answer["pages"] == [
        {
            "page": 1,
            "status": "ok",
            "error": None,
            "model_id": "fake",
            "warnings": [],
            "text": answer["text"],
            "width_px": 320,
            "height_px": 200,
            "turned_degrees": 0,
            "finish_reason": "stop",
            "confidence": 0.875,
            "coverage": 1.0,
            "unread": [],
            "regions": [],
            "calibrated": None,
            "word_accuracy": None,
            "lines": None,
            "words": None,
            "doubtful_words": None,
            "doubtful_digits": None,
        }
    ]
    assert answer["usage"]["vision_tokens"] > 0
    assert answer["latency_ms"] >= answer["timings_ms"]["decode"] > 0


async def test_specifications_route_is_the_same() -> None:
    async with running_service() as service:
        ours = await service.ocr(png())
        theirs = await service.client.post("/api/ocr/run", files={"file": ("x", png())})
    assert theirs.status_code == 200
    assert theirs.json()["text"] == ours.json()["text"]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
async def test_formats_are_told_by_content_whatever_the_name(file_format: str) -> None:
    async with running_service() as service:
        response = await service.ocr(encode(page_image(), file_format), name="page.exe")
    assert response.status_code == 200


async def test_pdf_pages_are_read_in_order() -> None:
    async with running_service() as service:
        every = (await service.ocr(make_pdf(["one", "two", "three"]))).json()
        some = (await service.ocr(make_pdf(["one", "two", "three"]), pages="3,1")).json()
    assert [page["page"] for page in every["pages"]] == [1, 2, 3]
    assert every["text"] == "\n\n".join(page["text"] for page in every["pages"])
    assert [page["page"] for page in some["pages"]] == [1, 3]
    assert [page["text"] for page in some["pages"]] == [every["pages"][0]["text"], every["pages"][2]["text"]]


async def test_boxes_are_in_the_upright_images_pixels() -> None:
    stored = page_image(size=(400, 200)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    async with running_service() as service:
        page = (await service.ocr(encode(stored, exif=exif.tobytes()), task="ocr")).json()["pages"][0]
    assert (page["width_px"], page["height_px"]) == (400, 200)
    (region,) = page["regions"]
    left, top, right, bottom = region["box_px"]
    assert 0 <= left < right <= 400
    assert 0 <= top < bottom <= 200
    assert region["text"] == page["text"]


async def test_fields_reach_the_engine() -> None:
    async with running_service() as service:
        await service.ocr(png(), task="locate", query="the total", mode="small", max_new_tokens="3", model_id="fake")
        answer = (await service.ocr(png(), max_new_tokens="3")).json()
        located, free = service.engine.submitted
    assert located.prompt == prompt_for(Task.LOCATE, "the total")
    assert (str(located.page.plan.mode), located.params.max_new_tokens, located.model_id) == ("small", 3, "fake")
    assert free.prompt == prompt_for(Task.FREE)
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 3)


async def test_a_seed_draws_the_same_text_again() -> None:
    async with running_service() as service:
        greedy = [(await service.ocr(png(), **fields)).json() for fields in ({}, {"temperature": "0", "seed": "5"})]
        drawn = (await service.ocr(png(), temperature="1")).json()
        again = (await service.ocr(png(), temperature="1", seed=str(drawn["seed"]))).json()
        other = (await service.ocr(png(), temperature="1", seed="-1")).json()
    assert [answer["seed"] for answer in greedy] == [None, None]
    assert greedy[0]["text"] == greedy[1]["text"]
    assert (again["text"], again["seed"]) == (drawn["text"], drawn["seed"])
    assert other["seed"] == -1
    assert len({greedy[0]["text"], drawn["text"], other["text"]}) == 3
    assert {request.params.temperature for request in service.engine.submitted} == {0.0, 1.0}


async def test_empty_fields_count_as_not_given() -> None:
    async with running_service() as service:
        response = await service.ocr(png(), mode="", pages=" ", query="", task="")
    assert response.status_code == 200


def broken_images() -> dict[str, tuple[bytes, int, str]]:
    big = io.BytesIO()
    Image.new("1", (12_001, 16)).save(big, "PNG")
    return {
        "empty": (b"", 422, "empty_file"),
        "text": (b"hello", 415, "unsupported_format"),
        "netpbm": (encode(page_image(), "PPM"), 415, "unsupported_format"),
        "truncated": (png()[:300], 422, "undecodable_file"),
        "wide": (big.getvalue(), 413, "too_many_pixels"),
        "protected": (make_pdf(["x"], encrypted=True), 422, "pdf_encrypted"),
        "float": (encode(Image.new("F", (32, 32)), "TIFF"), 415, "unsupported_pixel_type"),
        "pdf roll": (make_pdf(["x"], size_pt=(50, 14_400)), 422, "extreme_aspect_ratio"),
    }


async def test_every_image_format_is_read_in_a_confined_process() -> None:
    files = {name: encode(page_image(), name) for name in ("GIF", "BMP", "JPEG2000", "AVIF")}
    if reads_heic():
        files["HEIC"] = HEIC
    async with running_service() as service:
        for name, data in files.items():
            response = await service.ocr(data)
            assert response.status_code == 200, name
            with_size = response.json()["pages"][0]
            expected = (64, 48) if name == "HEIC" else page_image().size
            assert (with_size["width_px"], with_size["height_px"]) == expected


async def test_a_file_in_another_format_is_named_to_the_client() -> None:
    async with running_service() as service:
        problem = (await service.ocr(base64.b64encode(png()))).json()
        unknown = (await service.ocr(b"\xfe\xfd" * 40)).json()
    assert (problem["status"], problem["code"], problem["found"]) == (415, "unsupported_format", "base64 text")
    assert "Decode it" in problem["advice"]
    assert "found" not in unknown


async def test_bad_files_get_their_code_and_leak_nothing() -> None:
    async with running_service() as service:
        for name, (data, status, code) in broken_images().items():
            response = await service.ocr(data, name="secret.png")
            problem = response.json()
            assert (response.status_code, problem["code"]) == (status, code), name
            assert response.headers["content-type"] == "application/problem+json"
            assert problem["type"] == f"urn:deepsynth:error:{code}"
            assert problem["request_id"] == response.headers["x-request-id"]
            assert not [leak for leak in LEAKS if leak in response.text]
        assert (await service.ocr(png())).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "code", "field"),
    [
        ({"task": "secret"}, 422, "invalid_field", "task"),
        ({"mode": "secret"}, 422, "invalid_field", "mode"),
        ({"mode": "base", "task": "locate"}, 422, "invalid_field", "query"),
        ({"query": "secret"}, 422, "invalid_field", "query"),
        ({"max_new_tokens": "0"}, 422, "invalid_field", "max_new_tokens"),
        ({"max_new_tokens": "5000"}, 422, "invalid_field", "max_new_tokens"),
        ({"max_new_tokens": "secret"}, 422, "invalid_field", "max_new_tokens"),
        ({"pages": "secret"}, 422, "invalid_field", "pages"),
        ({"pages": "2"}, 422, "page_out_of_range", None),
        ({"pages": "1-17"}, 422, "too_many_pages", None),
        ({"stream": "secret"}, 422, "invalid_field", "stream"),
        ({"top_p": "1"}, 422, "invalid_field", "top_p"),
        ({"<b>secret": "1"}, 422, "invalid_field", ""),
        ({"temperature": "2.1"}, 422, "invalid_field", "temperature"),
        ({"temperature": "-0.1"}, 422, "invalid_field", "temperature"),
        ({"temperature": "nan"}, 422, "invalid_field", "temperature"),
        ({"temperature": "inf"}, 422, "invalid_field", "temperature"),
        ({"temperature": "secret"}, 422, "invalid_field", "temperature"),
        ({"seed": "1.5"}, 422, "invalid_field", "seed"),
        ({"seed": str(2**63)}, 422, "invalid_field", "seed"),
        ({"seed": "secret", "temperature": "0"}, 422, "invalid_field", "seed"),
        ({"model_id": "secret"}, 404, "model_not_found", None),
        ({"model_id": "../../etc/secret"}, 404, "model_not_found", None),
        ({"query": "x" * 1001, "task": "locate"}, 422, "invalid_field", "query"),
    ],
)
async def test_bad_fields_are_named_and_not_quoted(
    fields: dict[str, str], status: int, code: str, field: str | None
) -> None:
    async with running_service() as service:
        response = await service.ocr(png(), **fields)
    problem = response.json()
    assert (response.status_code, problem["code"], problem.get("field")) == (status, code, field)
    assert not [leak for leak in LEAKS if leak in response.text]


async def post_raw(service: RunningService, body: bytes, content_type: str) -> tuple[int, str]:
    response = await service.client.post("/ocr", content=body, headers={"content-type": content_type})
    return response.status_code, response.json()["code"]


async def test_bodies_that_are_no_form() -> None:
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="task"\r\n\r\nfree\r\n'
    async with running_service() as service:
        assert await post_raw(service, b"x", "image/png") == (415, "not_multipart")
        assert await post_raw(service, b"{}", "application/json") == (415, "not_multipart")
        assert await post_raw(service, b"x", "multipart/form-data") == (400, "malformed_body")
        assert await post_raw(service, b"nonsense", form) == (400, "malformed_body")
        assert await post_raw(service, b"", form) == (422, "invalid_field")
        assert await post_raw(service, field + b"--b--\r\n", form) == (422, "invalid_field")
        assert await post_raw(service, (part + b"1\r\n") * 2 + b"--b--\r\n", form) == (422, "invalid_field")
        assert await post_raw(service, field * (MAX_FIELDS + 1) + part + b"--b--\r\n", form) == (400, "malformed_body")
        assert await post_raw(service, field * 2 + part + b"\r\n--b--\r\n", form) == (422, "invalid_field")
        long = field.replace(b"free", b"x" * 17_000)
        assert await post_raw(service, long + b"--b--\r\n", form) == (400, "malformed_body")
        assert service.services.gate.num_waiting + service.services.gate.num_running == 0


FORM = "multipart/form-data; boundary=b"


def part(disposition: bytes, value: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + value + b"\r\n"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (part(b'name="file"; filename="a"', b"1") * 2, "file"),
        (part(b'name="file"; filename="a"', b"1") + part(b'name="other"; filename="b"', b"1"), "other"),
        (part(b'name="file"; filename="a"', b"1") + part(b'name="task"; filename="b"', b"free"), "task"),
        (part(b'name="file"', b"text"), "file"),
        (part(b'name="task"', b"free") * 12 + part(b'name="file"; filename="a"', b"1"), "task"),
        (part(b'name="task"', b"") * 2 + part(b'name="file"; filename="a"', b"1"), "task"),
    ],
)
async def test_a_form_with_a_part_too_many_or_misplaced_is_told_which(body: bytes, field: str) -> None:
    async with running_service() as service:
        response = await service.client.post("/ocr", content=body + b"--b--\r\n", headers={"content-type": FORM})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["field"]) == (422, "invalid_field", field)


async def test_a_body_that_was_cut_off_is_told_apart_from_a_missing_file() -> None:
    whole = part(b'name="file"; filename="a"', png()) + b"--b--\r\n"
    async with running_service() as service:
        for length in (len(whole) - 8, len(whole) // 2, 20):
            response = await service.client.post("/ocr", content=whole[:length], headers={"content-type": FORM})
            assert (response.status_code, response.json()["code"]) == (400, "malformed_body"), length
            assert response.json()["reason"] == "the body ends before its closing boundary"


@pytest.mark.parametrize(
    ("disposition", "saved"),
    [
        (b"filename*=utf-8''M%C3%BCller.png", "filename=\"M_ller.txt\"; filename*=UTF-8''M%C3%BCller.txt"),
        (b"filename*=UTF-8'en'plain.png", 'filename="plain.txt"'),
        (b"filename*=iso-8859-1''M%FCller.png", "filename=\"M_ller.txt\"; filename*=UTF-8''M%C3%BCller.txt"),
        (b"filename*=utf-16''x", 'filename="document.txt"'),
        (b"filename*=nonsense", 'filename="document.txt"'),
        (b"filename=\"plain.png\"; filename*=utf-8''other.png", 'filename="plain.txt"'),
        (b"filename=\"\"; filename*=utf-8''other.png", 'filename="other.txt"'),
        (b"filename*=utf-8''other.png; filename=\"\"", 'filename="other.txt"'),
        (b'filename="a%22b%22.png"', "filename=\"a_b_.txt\"; filename*=UTF-8''a%22b%22.txt"),
        (b'filename="a%0D%0Ab.png"', 'filename="ab.txt"'),
        (b'filename="50%25.png"', "filename=\"50_25.txt\"; filename*=UTF-8''50%2525.txt"),
    ],
)
async def test_an_answer_is_saved_under_the_name_of_the_upload(disposition: bytes, saved: str) -> None:
    body = part(b'name="file"; ' + disposition, png()) + b"--b--\r\n"
    async with running_service() as service:
        response = await service.client.post("/ocr?format=text", content=body, headers={"content-type": FORM})
    assert (response.status_code, response.headers["content-disposition"]) == (200, f"attachment; {saved}")


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-16", "punycode", "unheard-of", ""])
async def test_a_form_in_a_charset_that_no_client_needs_is_refused_without_a_look_at_it(charset: str) -> None:
    body = part(b'name="query"', rb"\ud800") + part(b'name="file"; filename="a"', png()) + b"--b--\r\n"
    kind = {"content-type": f"{FORM}; charset={charset}"}
    async with running_service() as service:
        response = await service.client.post("/ocr", content=body, headers=kind)
    assert (response.status_code, response.json()["code"]) == (400, "malformed_body")
    # The standard library's table of encodings, which never shrinks.
    assert not [name for name in vars(encodings)["_cache"] if name.startswith("unheard")]


@pytest.mark.parametrize(("charset", "query"), [("UTF-8", "Stra\u00dfe".encode()), ("iso-8859-1", b"Stra\xdfe")])
async def test_a_form_is_read_in_its_charset(charset: str, query: bytes) -> None:
    fields = part(b'name="task"', b"locate") + part(b'name="query"', query)
    body = fields + part(b'name="file"; filename="a"', png()) + b"--b--\r\n"
    kind = {"content-type": f"{FORM}; charset={charset}"}
    async with running_service() as service:
        assert (await service.client.post("/ocr", content=body, headers=kind)).status_code == 200
        assert service.engine.submitted[-1].prompt == prompt_for(Task.LOCATE, "Stra\u00dfe")


@pytest.mark.parametrize("path", ["/ocr", "/api/ocr/run"])
async def test_options_in_the_query_string_do_what_they_do_in_the_form(path: str) -> None:
    files = {"file": ("page.png", png())}
    async with running_service() as service:
        await service.client.post(f"{path}?task=locate&mode=small&max_new_tokens=3", files=files, data={"query": "sum"})
        request = service.engine.submitted[-1]
        assert (request.prompt, request.params.max_new_tokens) == (prompt_for(Task.LOCATE, "sum"), 3)
        assert request.page.plan.mode == "small"
        missing = await service.client.post(f"{path}?model_id=nosuch", files=files)
        assert (missing.status_code, missing.json()["code"]) == (404, "model_not_found")
        stream = await service.client.post(f"{path}?stream=true", files=files)
        assert stream.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("url", "field", "near"),
    [
        ("/ocr?model=nano", "model", "model_id"),
        ("/ocr?Task=free", "Task", "task"),
        ("/ocr?max_tokens=9", "max_tokens", "max_new_tokens"),
        ("/ocr?page=2", "page", "pages"),
        ("/ocr?zzz=1", "zzz", None),
        ("/ocr?%3Cb%3Esecret=1", "", None),
        ("/ocr?file=a.png", "file", None),
        ("/ocr?task=free&task=free", "task", None),
        ("/ocr?mode=secret", "mode", None),
    ],
)
async def test_wrong_options_in_the_query_string_are_named(url: str, field: str, near: str | None) -> None:
    async with running_service() as service:
        response = await service.client.post(url, files={"file": ("page.png", png())})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["field"]) == (422, "invalid_field", field)
    assert problem.get("did_you_mean") == near
    assert not [leak for leak in LEAKS if leak in response.text]


async def test_an_option_in_both_places_is_refused() -> None:
    async with running_service() as service:
        response = await service.client.post("/ocr?task=free", files={"file": ("a.png", png())}, data={"task": "free"})
    assert (response.status_code, response.json()["field"]) == (422, "task")
    assert response.json()["expected"] == "one value; it was sent more than once"


async def test_a_file_under_another_name_is_told_the_right_one() -> None:
    async with running_service() as service:
        response = await service.client.post("/ocr", files={"image": ("page.png", png())})
    assert (response.json()["field"], response.json()["did_you_mean"]) == ("image", "file")


async def test_nothing_redirects_a_document_to_another_address() -> None:
    headers = {"x-forwarded-proto": "https", "host": "ocr.example.com"}
    async with running_service() as service:
        for path in ("/ocr/", "/api/ocr/run/", "/readyz/", "/v1/models/"):
            for method in ("GET", "POST"):
                response = await service.client.request(method, path, headers=headers)
                assert (response.status_code, response.json()["code"]) == (404, "not_found"), path
                assert "location" not in response.headers


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/v1/models", "/", "/adapters"])
async def test_head_is_a_get_without_its_body(path: str) -> None:
    async with running_service() as service:
        head, get = await service.client.head(path), await service.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_says_that_a_service_that_drains_is_not_ready() -> None:
    async with running_service() as service:
        service.services.gate.drain()
        assert (await service.client.head("/readyz")).status_code == 503
        assert (await service.client.head("/ocr")).status_code == 405


async def test_text_under_the_files_name_is_no_file() -> None:
    async with running_service() as service:
        response = await service.client.post("/ocr", data={"file": "http://127.0.0.1/x.png"}, files={"other": b"x"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_field")


async def test_file_larger_than_the_limit_is_refused_and_the_limit_itself_is_not() -> None:
    data = png()
    async with running_service(max_upload_bytes=len(data) + 1024) as service:
        assert (await service.ocr(data + b"\0" * 1024)).status_code == 200
        response = await service.ocr(data + b"\0" * 1025)
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")
    assert response.json()["limit_bytes"] == len(data) + 1024


@pytest.mark.parametrize(("code", "status"), [("engine_failed", 500), ("engine_lost", 503), ("odd", 500)])
async def test_engines_failures_have_their_status(code: str, status: int) -> None:
    engine = SteeredEngine(FakeEngine(fail_with={prompt_for(Task.FREE): code}))
    async with running_service(engine) as service:
        response = await service.ocr(png())
        assert response.status_code == status
        assert "told to fail" not in response.text
        assert ("retry-after" in response.headers) is (status == 503)
        assert (await service.ocr(png(), task="describe")).status_code == 200


async def test_fault_of_our_own_is_a_500_without_a_word_about_it(caplog: pytest.LogCaptureFixture) -> None:
    async with running_service() as service:
        service.engine.submit = None  # type: ignore[assignment]
        response = await service.ocr(png())
        assert await service.metric('deepsynth_requests_total{code="internal_error",outcome="server_error"}') == 1
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "NoneType" not in response.text
    assert any(record.exc_info for record in caplog.records)


async def test_request_id_is_kept_when_it_is_harmless() -> None:
    async with running_service() as service:
        given = await service.client.get("/livez", headers={"x-request-id": "abc-1.2_Z"})
        odd = await service.client.get("/livez", headers={"x-request-id": "a b\tc"})
        none = await service.client.get("/livez")
    assert given.headers["x-request-id"] == "abc-1.2_Z"
    assert len(odd.headers["x-request-id"]) == len(none.headers["x-request-id"]) == 32


async def test_openapi_describes_the_form() -> None:
    async with running_service() as service:
        schema = (await service.client.get("/openapi.json")).json()
    form = schema["paths"]["/ocr"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert form["properties"]["file"]["format"] == "binary"
    assert form["properties"]["task"]["enum"] == [*map(str, Task), ""]
    assert "$ref" not in json.dumps(form)
    assert "429" in schema["paths"]["/ocr"]["post"]["responses"]
