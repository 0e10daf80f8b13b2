"""Samples through HTTP: what is kept and when, corrections, erasing, exporting, and that no answer ever suffers."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import itertools
import json
import tarfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from service.access.key import Key, Scope, digest_of, new_secret
from service.access.key_file import editing
from service.engine.fake import FakeEngine
from service.samples import keeper as keeper_module
from service.samples import store as store_module
from service.samples.store import BLOCK_BYTES
from shared.contract.prompts import Task
from shared.contract.samples import MAX_TEXT_CHARACTERS, SampleRecord, parse_record, record_files
from tests.support.fake_engine import SteeredEngine
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, encode, eventually, page_image, png, running_service
from trainer.data.sources.images import check_image

pytestmark = pytest.mark.integration

ON = {"ocr_save_samples": True, "ocr_privacy_allowed": True}
KEY = "k" * 20
AS_ADMIN = {"authorization": f"Bearer {KEY}"}


async def kept(service: RunningService) -> None:
    keeper = service.services.samples
    assert keeper is not None
    await eventually(lambda: keeper.num_waiting == 0)


def records(folder: Path) -> list[SampleRecord]:
    return [parse_record(path.read_bytes()) for path in record_files(folder)]


def audit(folder: Path) -> list[str]:
    return [json.loads(line)["what"] for line in (folder / "audit.jsonl").read_text().splitlines()]


async def feedback(service: RunningService, **members: Any) -> httpx.Response:
    return await service.client.post("/feedback", json=members)


# Every route that reads a page, or that could be thought to.


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def chat_body(*pages: bytes, **members: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(page)}} for page in pages]
    return {"model": "fake", "messages": [{"role": "user", "content": parts}], **members}


Send = Callable[[httpx.AsyncClient, bytes, dict[str, str]], Awaitable[httpx.Response]]


def form(path: str, **fields: str) -> Send:
    return lambda client, page, headers: client.post(path, files={"file": page}, data=fields, headers=headers)


def chat(**members: Any) -> Send:
    return lambda client, page, headers: client.post(
        "/v1/chat/completions", json=chat_body(page, **members), headers=headers
    )


def mistral(client: httpx.AsyncClient, page: bytes, headers: dict[str, str]) -> Awaitable[httpx.Response]:
    document = {"type": "image_url", "image_url": data_url(page)}
    return client.post("/v1/ocr", json={"model": "fake", "document": document}, headers=headers)


def process(client: httpx.AsyncClient, page: bytes, headers: dict[str, str]) -> Awaitable[httpx.Response]:
    return client.put("/process", content=page, headers=headers)


READING = {
    "ocr": form("/ocr"),
    "its other name": form("/api/ocr/run"),
    "options in the url": form("/ocr?task=markdown"),
    "ocr as a stream": form("/ocr", stream="true"),
    "another format": form("/ocr", format="searchable-pdf"),
    "chat": chat(),
    "chat as a stream": chat(stream=True),
    "mistral": mistral,
    "external loader": process,
}
NOT_KEEPING = {"preview": form("/preview"), "chat that stores nothing": chat(store=False)}
HEADERS = {None: True, "1": False, "true": False, "TRUE ": False, "0": True, "false": True}


@pytest.mark.parametrize(("is_saving", "is_allowed"), list(itertools.product([False, True], repeat=2)))
async def test_page_is_kept_exactly_when_settings_and_client_allow_it(
    is_saving: bool, is_allowed: bool, tmp_path: Path
) -> None:
    expected: set[str] = set()
    options = {"ocr_save_samples": is_saving, "ocr_privacy_allowed": is_allowed, "sample_dir": tmp_path / "samples"}
    async with running_service(**options) as service:
        combinations = itertools.product({**READING, **NOT_KEEPING}.items(), HEADERS.items())
        for number, ((name, send), (value, is_willing)) in enumerate(combinations):
            page = png(f"page {number} of many")
            headers = {} if value is None else {"x-deepsynth-no-store": value}
            answer = await send(service.client, page, headers)
            assert answer.status_code == 200, (name, answer.text)
            if is_saving and is_allowed and is_willing and name in READING:
                expected.add(check_image(page).pixels_sha256)
        ready = (await service.client.get("/readyz")).json()
        if service.services.samples is not None:
            await kept(service)
    assert ready == {"status": "ready", "samples": "full" if is_saving and is_allowed else "off", "jobs": False}
    assert {record.sha256 for record in records(tmp_path / "samples")} == expected
    assert bool(expected) == (is_saving and is_allowed)
    assert (tmp_path / "samples").exists() == (is_saving and is_allowed)


async def test_two_headers_that_disagree_keep_nothing(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        headers = [("x-deepsynth-no-store", "1"), ("x-deepsynth-no-store", "0")]
        await service.client.post("/ocr", files={"file": png()}, headers=headers)
        await kept(service)
    assert records(tmp_path) == []


@pytest.mark.parametrize("is_saving", [False, True])
async def test_unclear_header_is_refused_before_a_page_is_read(is_saving: bool, tmp_path: Path) -> None:
    folders = {"sample_dir": tmp_path / "samples", "job_dir": tmp_path / "jobs"}
    async with running_service(ocr_save_samples=is_saving, ocr_privacy_allowed=True, **folders) as service:
        for name, send in {**READING, **NOT_KEEPING, "job": form("/jobs")}.items():
            refused = [("x-deepsynth-no-store", value) for value in ("perhaps", "", "1, 1")]
            refused += [(name, "1") for name in ("X-DeepSynth-NoStore", "Deepsynth-No-Store", "x_deepsynth_no_store")]
            for header in [*refused, ("X-Deepsynth-No-Storage", "0"), ("X-Deepsynth-Store", "0")]:
                answer = await send(service.client, png(), dict([header]))
                assert answer.status_code == 422, (name, header)
                assert "X-Deepsynth-No-Store" in answer.text
        assert service.engine.submitted == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no page is kept, as DEEPSYNTH_OCR_SAVE_SAMPLES and DEEPSYNTH_OCR_PRIVACY_ALLOWED are not true"),
        ({"ocr_save_samples": True}, "as DEEPSYNTH_OCR_PRIVACY_ALLOWED is not true"),
        (ON, "samples are on: pages are kept unless a request opts out"),
    ],
)
async def test_start_says_whether_pages_are_kept(
    settings: dict[str, bool], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running_service(**settings, sample_dir=tmp_path):
        assert words in caplog.text


async def test_folder_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("")
    failed = asyncio.Event()
    options = {"app_options": {"on_failed": failed.set}}
    async with running_service(**ON, sample_dir=tmp_path / "samples", wait_ready=False, **options) as service:
        await asyncio.wait_for(failed.wait(), 60)
        assert (await service.client.get("/readyz")).status_code == 503


# What is kept


async def test_sample_has_page_text_model_and_timings(tmp_path: Path) -> None:
    page = png("an invoice")
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = (await service.ocr(page, task="markdown", mode="small")).json()
        await kept(service)
        assert await service.metric('deepsynth_samples_total{what="stored"}') == 1
        assert await service.metric("deepsynth_samples_kept") == 1
        assert await service.metric("deepsynth_sample_bytes") == 2 * BLOCK_BYTES
    (record,) = records(tmp_path)
    reading = record.readings[Task.MARKDOWN]
    assert (reading.text, reading.model_id, reading.mode) == (answer["pages"][0]["text"], "fake", "small")
    assert reading.timings_ms["generate"] > 0
    assert (record.answers[0].id, record.answers[0].page) == (answer["id"], 1)
    stored = (tmp_path / "pages" / record.image_name).read_bytes()
    assert check_image(stored).pixels_sha256 == check_image(page).pixels_sha256 == record.sha256
    assert audit(tmp_path) == ["opened", "stored"]


async def test_kept_page_is_upright_and_without_the_files_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where it was taken"
    data = encode(page_image(size=(300, 200)), "JPEG", exif=exif)
    async with running_service(**ON, sample_dir=tmp_path) as service:
        await service.ocr(data)
        await kept(service)
    (record,) = records(tmp_path)
    stored = (tmp_path / "pages" / record.image_name).read_bytes()
    assert b"where it was taken" in data
    assert b"where it was taken" not in stored
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.size, dict(image.getexif())) == ((200, 300), {})


async def test_thumbnail_alone_is_kept_where_the_setting_says_so(tmp_path: Path) -> None:
    page = png("a contract", (1200, 900))
    async with running_service(**ON, sample_dir=tmp_path, sample_images="thumbnail") as service:
        assert (await service.client.get("/readyz")).json()["samples"] == "thumbnail"
        await service.ocr(page)
        await kept(service)
    (record,) = records(tmp_path)
    assert record.is_thumbnail
    assert record.sha256 == check_image(page).pixels_sha256
    assert (record.width_px, record.height_px) == (1200, 900)
    with Image.open(tmp_path / "pages" / record.image_name) as image:
        assert (image.format, image.size) == ("JPEG", (256, 192))


async def test_pages_of_documents_are_kept_one_by_one_without_failed_ones(tmp_path: Path) -> None:
    pdf = make_pdf(["one", "", "three", "four"])
    engine = SteeredEngine(FakeEngine())
    async with running_service(engine, **ON, sample_dir=tmp_path) as service:
        answer = (await service.ocr(pdf, pages="2-4")).json()
        await kept(service)
        assert [page["status"] for page in answer["pages"]] == ["blank", "ok", "ok"]
        found = {record.answers[0].page: record for record in records(tmp_path)}
        assert sorted(found) == [2, 3, 4]
        assert found[2].readings[Task.FREE].status == "blank"
        assert found[3].readings[Task.FREE].text == answer["pages"][1]["text"]
        assert (await feedback(service, id=answer["id"], page=2, text="overlooked")).status_code == 200
        assert (await feedback(service, id=answer["id"], page=1, text="x")).json()["code"] == "sample_not_found"


async def test_failed_page_is_not_kept(tmp_path: Path) -> None:
    frames = [page_image("one"), page_image("wide", (12_001, 40))]
    tiff = encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = (await service.ocr(tiff)).json()
        await kept(service)
    assert answer["status"] == "partial"
    assert [record.answers[0].page for record in records(tmp_path)] == [1]


async def test_images_of_a_chat_are_pages_of_one_answer(tmp_path: Path) -> None:
    pages = [png("first"), png("second")]
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = (await service.client.post("/v1/chat/completions", json=chat_body(*pages))).json()
        assert (await feedback(service, id=answer["id"], page=2, text="2nd")).json()["page"] == 2
    by_page = {record.answers[0].page: record for record in records(tmp_path)}
    assert [by_page[number].sha256 for number in (1, 2)] == [check_image(page).pixels_sha256 for page in pages]
    assert by_page[2].corrections[Task.FREE].text == "2nd"
    assert by_page[1].corrections == {}


async def test_answers_of_other_protocols_can_be_corrected(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        ids = [
            (await mistral(service.client, png("a page for Mistral"), {})).json()["id"],
            (await process(service.client, png("a page for a loader"), {})).json()[0]["metadata"]["answer_id"],
        ]
        for answer_id in ids:
            assert (await feedback(service, id=answer_id, text="right")).status_code == 200
    assert all(record.corrections for record in records(tmp_path))


# Corrections


async def test_correction_is_stored_beside_the_page(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = (await service.ocr(png())).json()
        first = await feedback(service, id=answer["id"], text="wrong again")
        given = await feedback(service, id=answer["id"], page=1, text="Zeile 1\r\nZeile 2 \u20ac \U0001f600")
        assert await service.metric('deepsynth_samples_total{what="corrected"}') == 2
    assert first.status_code == 200
    assert given.json() == {"id": answer["id"], "page": 1, "status": "stored"}
    (record,) = records(tmp_path)
    assert record.corrections[Task.FREE].text == "Zeile 1\nZeile 2 \u20ac \U0001f600"
    assert record.corrections[Task.FREE].model_id == "fake"
    assert record.readings[Task.FREE].text == answer["text"]


BAD_CORRECTIONS: list[tuple[str | bytes, int, str]] = [
    ('{"id": "ID", "text": "\\ud800 half"}', 422, "text_not_unicode"),
    (b'{"id": "ID", "text": "\xff"}', 422, "text_not_unicode"),
    (b'{"id": "ID", "text": "\xed\xa0\x80"}', 422, "text_not_unicode"),
    ('{"id": "ID", "text": "a\\u0000b"}', 422, "invalid_field"),
    ('{"id": "ID", "text": 7}', 422, "invalid_field"),
    ('{"id": "ID"}', 422, "invalid_field"),
    ('{"id": "ID", "text": "x", "pages": 1}', 422, "invalid_field"),
    ('{"id": "ID", "text": "x", "page": 0}', 422, "invalid_field"),
    ('{"id": "ID", "text": "x", "page": 2}', 404, "sample_not_found"),
    ('{"id": "ocr-0", "text": "x"}', 404, "sample_not_found"),
    ('["id", "text"]', 422, "invalid_field"),
    ('{"id": ', 400, "malformed_json"),
    ("[" * 20_000, 400, "malformed_json"),
    (json.dumps({"id": "ID", "text": "x" * (MAX_TEXT_CHARACTERS + 1)}), 413, "text_too_long"),
    (json.dumps({"id": "ID", "text": "x" * (13 * MAX_TEXT_CHARACTERS)}), 413, "upload_too_large"),
]


async def test_bad_correction_has_a_code_and_changes_nothing(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer_id = (await service.ocr(png())).json()["id"]
        for body, status, code in BAD_CORRECTIONS:
            raw = (body.encode() if isinstance(body, str) else body).replace(b"ID", answer_id.encode())
            answer = await service.client.post("/feedback", content=raw, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["code"]) == (status, code), body[:60]
        text = "\U0001f600" * MAX_TEXT_CHARACTERS
        longest = await service.client.post(
            "/feedback",
            content=json.dumps({"id": answer_id, "text": text}),
            headers={"content-type": "application/json"},
        )
        form = await service.client.post("/feedback", data={"id": answer_id, "text": "x"})
        await kept(service)
    assert (longest.status_code, form.json()["code"]) == (200, "not_json")
    # Escaped, it takes twelve bytes a character; it is the only one that was stored.
    assert records(tmp_path)[0].corrections[Task.FREE].text == text


async def test_correction_of_a_document_names_its_page(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = (await service.ocr(make_pdf(["one", "two"]))).json()
        unnamed = await feedback(service, id=answer["id"], text="x")
    assert (unnamed.status_code, unnamed.json()["field"]) == (422, "page")
    assert "2 pages" in unnamed.json()["expected"]


async def test_service_without_samples_says_so() -> None:
    async with running_service(admin_key=KEY) as service:
        answer_id = (await service.ocr(png())).json()["id"]
        answers = [
            await feedback(service, id=answer_id, text="x"),
            await service.client.delete(f"/samples/{answer_id}"),
            await service.client.get("/samples", headers=AS_ADMIN),
        ]
    assert [(each.status_code, each.json()["code"]) for each in answers] == [(409, "samples_off")] * 3


async def test_opted_out_answer_is_told_from_an_unknown_one(tmp_path: Path) -> None:
    no_store = {"x-deepsynth-no-store": "1"}
    async with running_service(**ON, sample_dir=tmp_path) as service:
        out = (await service.client.post("/ocr", files={"file": png()}, headers=no_store)).json()["id"]
        kept_id = (await service.ocr(png())).json()["id"]
        answers = [
            await feedback(service, id=out, text="x"),
            await service.client.delete(f"/samples/{out}"),
            await service.client.post("/feedback", json={"id": kept_id, "text": "x"}, headers=no_store),
        ]
        assert (await feedback(service, id=kept_id, text="x")).status_code == 200
    assert [(each.status_code, each.json()["code"]) for each in answers] == [(409, "sample_opted_out")] * 3


# Erasing and exporting


async def test_answer_is_erased_by_its_id(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = (await service.ocr(make_pdf(["one", "two"]))).json()
        other = (await service.ocr(png("another"))).json()
        erased = await service.client.delete(f"/samples/{answer['id']}")
        again = await service.client.delete(f"/samples/{answer['id']}")
        gone = await feedback(service, id=answer["id"], page=1, text="x")
        assert await service.metric('deepsynth_samples_total{what="erased"}') == 2
    assert erased.json() == {"id": answer["id"], "pages": [1, 2]}
    assert again.json()["code"] == gone.json()["code"] == "sample_not_found"
    assert [record.answers[0].id for record in records(tmp_path)] == [other["id"]]
    assert audit(tmp_path).count("erased") == 2


async def test_export_unpacks_to_a_folder_of_samples(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path / "samples", admin_key=KEY) as service:
        ids = [(await service.ocr(png(f"page {number}"))).json()["id"] for number in range(3)]
        await feedback(service, id=ids[1], text="right")
        await kept(service)
        tars = {
            query: await service.client.get(f"/samples{query}", headers=AS_ADMIN) for query in ("", "?only=corrected")
        }
        refused = [
            await service.client.get("/samples"),
            await service.client.get("/samples", headers={"authorization": "Bearer wrong"}),
            await service.client.get("/samples?only=all", headers=AS_ADMIN),
            await service.client.get("/samples?corrected=1", headers=AS_ADMIN),
        ]
        assert await service.metric('deepsynth_samples_total{what="read"}') == 4
    assert [each.status_code for each in refused] == [401, 401, 422, 422]
    assert audit(tmp_path / "samples").count("read") == 4
    for query, count in (("", 3), ("?only=corrected", 1)):
        assert tars[query].headers["content-type"] == "application/x-tar"
        with tarfile.open(fileobj=io.BytesIO(tars[query].content)) as tar:
            tar.extractall(tmp_path / f"export{count}", filter="data")
        copies = records(tmp_path / f"export{count}")
        assert len(copies) == count
        for record in copies:
            image = (tmp_path / f"export{count}" / "pages" / record.image_name).read_bytes()
            assert check_image(image).pixels_sha256 == record.sha256


async def test_keys_correct_and_erase_but_export_with_their_scope_alone(tmp_path: Path) -> None:
    secrets = {scope: new_secret() for scope in Scope}
    with editing(tmp_path / "keys.json") as keys:
        for scope, secret in secrets.items():
            keys.append(Key.model_validate({"name": str(scope), "sha256": digest_of(secret), "scopes": [scope]}))
    bearer = {scope: {"authorization": f"Bearer {secret}"} for scope, secret in secrets.items()}
    settings = {**ON, "sample_dir": tmp_path / "samples", "key_file": tmp_path / "keys.json"}
    async with running_service(**settings) as service:
        client = service.client
        exports = {scope: (await client.get("/samples", headers=bearer[scope])).status_code for scope in Scope}
        read = await client.post("/ocr", files={"file": png()}, headers=bearer[Scope.OCR])
        body = {"id": read.json()["id"], "text": "right"}
        closed = await client.post("/feedback", json=body)
        given = await client.post("/feedback", json=body, headers=bearer[Scope.OCR])
        erased = await client.delete(f"/samples/{body['id']}", headers=bearer[Scope.OCR])
        again = await client.delete(f"/samples/{body['id']}", headers=bearer[Scope.SAMPLES])
    assert again.json()["code"] == "sample_not_found"
    assert exports == {Scope.OCR: 403, Scope.SAMPLES: 200, Scope.ADMIN: 200}
    assert (closed.status_code, given.status_code, erased.status_code) == (401, 200, 200)


async def test_export_is_closed_where_there_are_no_keys(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answer = await service.client.get("/samples")
    assert (answer.status_code, answer.json()["code"]) == (403, "admin_off")


# No request ever waits or fails


async def test_full_disk_costs_a_count_and_a_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running_service(**ON, sample_dir=tmp_path) as service:
        first = (await service.ocr(png("before"))).json()
        await kept(service)
        monkeypatch.setattr(store_module, "replace_file", full)
        answer = await service.ocr(png("after"))
        await kept(service)
        assert answer.status_code == 200
        assert await service.metric('deepsynth_samples_lost_total{reason="disk_full"}') == 1
        refused = await feedback(service, id=first["id"], text="x")
        assert (refused.status_code, refused.json()["code"]) == (503, "sample_storage_failed")
    assert "samples were not kept" in caplog.text
    assert len(records(tmp_path)) == 1


async def test_full_quota_is_counted(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path, sample_quota_bytes=2**20) as service:
        rows = Image.effect_noise((1200, 1200), 90).convert("RGB")
        assert (await service.ocr(encode(rows))).status_code == 200
        await kept(service)
        assert await service.metric('deepsynth_samples_lost_total{reason="quota"}') == 1


async def test_answers_do_not_wait_for_slow_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "MAX_WAITING_BYTES", 1)
    monkeypatch.setattr(keeper_module, "STOP_TIMEOUT_S", 0.1)
    async with running_service(**ON, sample_dir=tmp_path) as service:
        keeper = service.services.samples
        assert keeper is not None
        held = asyncio.Event()

        async def stuck(*_: object) -> None:
            await held.wait()

        monkeypatch.setattr(keeper._copier, "open", stuck)
        for number in range(4):
            assert (await service.ocr(png(str(number)))).status_code == 200
        assert keeper.num_waiting == 1
        assert await service.metric('deepsynth_samples_lost_total{reason="busy"}') == 3


async def test_fault_costs_its_document_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        keeper = service.services.samples
        assert keeper is not None
        copy = keeper._copier.copy

        async def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(keeper._copier, "copy", broken)
        assert (await service.ocr(png("first"))).status_code == 200
        await kept(service)
        monkeypatch.setattr(keeper._copier, "copy", copy)
        assert (await service.ocr(png("second"))).status_code == 200
        await kept(service)
        assert await service.metric('deepsynth_samples_lost_total{reason="fault"}') == 1
    assert len(records(tmp_path)) == 1


async def test_what_waits_is_kept_before_the_process_ends(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        answers = await asyncio.gather(*(service.ocr(png(f"page {number}")) for number in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len(records(tmp_path)) == 5


async def test_answer_that_waits_is_erased_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        keeper = service.services.samples
        assert keeper is not None
        opening, held = keeper._copier.open, asyncio.Event()

        async def slow(document: Any) -> Any:
            await held.wait()
            return await opening(document)

        monkeypatch.setattr(keeper._copier, "open", slow)
        first, second = [(await service.ocr(png(name))).json()["id"] for name in ("first", "second")]
        correcting = asyncio.create_task(feedback(service, id=second, text="x"))
        await asyncio.sleep(0)
        erased = await service.client.delete(f"/samples/{second}")
        assert (erased.status_code, erased.json()["pages"]) == (200, [1])
        assert (await correcting).json()["code"] == "sample_not_found"
        held.set()
        assert (await service.client.delete(f"/samples/{first}")).json()["pages"] == [1]
        assert await service.metric("deepsynth_sample_bytes") == 0
    assert records(tmp_path) == []


@pytest.mark.parametrize("is_erased", [False, True])
async def test_answer_that_is_erased_while_it_is_streamed_is_not_kept(is_erased: bool, tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        keeper = service.services.samples
        assert keeper is not None
        service.engine.hold(after=1)
        body = chat_body(png("first"), png("second"), stream=True)
        streaming = asyncio.create_task(service.client.post("/v1/chat/completions", json=body))
        await eventually(lambda: bool(keeper._being_read))
        (answer_id,) = keeper._being_read
        if is_erased:
            erased = await service.client.delete(f"/samples/{answer_id}")
            assert (erased.status_code, erased.json()) == (200, {"id": answer_id, "pages": []})
        assert not streaming.done()
        service.engine.release()
        assert answer_id in (await streaming).text
        await kept(service)
        afterwards = (await service.client.delete(f"/samples/{answer_id}")).json()
    if is_erased:
        assert afterwards["code"] == "sample_not_found"
        assert "stored" not in audit(tmp_path)
    else:
        assert afterwards["pages"] == [1, 2]


async def test_answer_that_could_not_be_read_is_not_remembered(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path) as service:
        keeper = service.services.samples
        assert keeper is not None
        service.engine.lose()
        assert (await service.ocr(png())).status_code == 503
        assert not keeper._being_read


async def test_samples_expire_while_the_service_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "EXPIRE_EVERY_S", 0.0)
    async with running_service(**ON, sample_dir=tmp_path) as service:
        keeper = service.services.samples
        assert keeper is not None
        opening, documents = keeper._copier.open, iter(range(3))

        async def never_idle(document: Any) -> Any:
            opened = await opening(document)
            if next(documents, None) is not None:
                answered, _, _ = next(iter(keeper._waiting.values()))
                keeper.offer(replace(answered, answer_id=f"ocr-{time.monotonic()}"))
            return opened

        monkeypatch.setattr(keeper._copier, "open", never_idle)
        num_waiting = []
        monkeypatch.setattr(keeper._store, "expire", lambda: num_waiting.append(keeper.num_waiting))
        await service.ocr(png())
        await kept(service)
    assert 1 in num_waiting


async def test_export_that_cannot_be_recorded_has_a_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running_service(**ON, sample_dir=tmp_path, admin_key=KEY) as service:
        await service.ocr(png())
        await kept(service)
        (tmp_path / "audit.jsonl").unlink()
        (tmp_path / "audit.jsonl").mkdir()
        answer = await service.client.get("/samples", headers=AS_ADMIN)
    assert (answer.status_code, answer.json()["code"]) == (503, "sample_storage_failed")
    assert "samples could not be exported: Is a directory" in caplog.text


async def test_correction_beyond_the_quota_has_a_code(tmp_path: Path) -> None:
    async with running_service(**ON, sample_dir=tmp_path, sample_quota_bytes=2**20) as service:
        noise = encode(Image.effect_noise((800, 800), 90))
        answer = (await service.ocr(noise)).json()
        await kept(service)
        refused = await feedback(service, id=answer["id"], text="\u5b57" * MAX_TEXT_CHARACTERS)
        assert (refused.status_code, refused.json()["code"]) == (503, "sample_storage_failed")
        assert await service.metric('deepsynth_samples_lost_total{reason="quota"}') == 1
    assert records(tmp_path)[0].corrections == {}
