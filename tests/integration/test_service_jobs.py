"""Jobs as a client uses them: submitted, followed, fetched, cancelled, and what is left after a restart."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.access.key import digest_of
from service.engine.fake import FakeEngine
from shared.contract.prompts import Task, prompt_for
from tests.support.fake_engine import SteeredEngine
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, encode, eventually, page_image, png, running_service

pytestmark = pytest.mark.integration

WORDS = ["one", "two", "three", "four", "five", "six"]
KEY = {"authorization": "Bearer a-key"}


async def submit(service: RunningService, data: bytes, headers: dict[str, str] | None = None, **fields: str) -> Any:
    response = await service.client.post("/jobs", files={"file": ("a.pdf", data)}, data=fields, headers=headers)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"jobs/{response.json()['id']}"
    return response.json()


async def show(service: RunningService, job: Any) -> Any:
    response = await service.client.get(f"/jobs/{job['id']}")
    assert response.status_code == 200, response.text
    return response.json()


async def until(service: RunningService, job: Any, condition: Any, seconds: float = 120) -> Any:
    async with asyncio.timeout(seconds):
        while not condition(shown := await show(service, job)):
            await asyncio.sleep(0.01)
    return shown


async def ended(service: RunningService, job: Any) -> Any:
    return await until(service, job, lambda shown: shown["state"] in ("done", "failed"))


async def result(service: RunningService, job: Any, **options: str) -> httpx.Response:
    return await service.client.get(f"/jobs/{job['id']}/result", params=options)


async def metric_becomes(service: RunningService, line: str, value: float) -> None:
    async with asyncio.timeout(60):
        while await service.metric(line) != value:
            await asyncio.sleep(0.01)


def without_times(answer: Any) -> Any:
    return {name: value for name, value in answer.items() if name not in ("id", "latency_ms", "timings_ms")}


def slow() -> SteeredEngine:
    """An engine that takes 50 ms for a page at least."""
    return SteeredEngine(FakeEngine(step_s=0.01))


async def test_without_a_folder_every_route_says_that_there_are_no_jobs() -> None:
    async with running_service() as service:
        responses = [
            await service.client.post("/jobs", files={"file": png()}),
            await service.client.get("/jobs"),
            await service.client.get("/jobs/job-1"),
            await service.client.get("/jobs/job-1/result"),
            await service.client.delete("/jobs/job-1"),
        ]
        models = "/documentintelligence/documentModels"
        azure = await service.client.post(f"{models}/prebuilt-read:analyze", content=png())
    assert {(response.status_code, response.json()["code"]) for response in responses} == {(409, "jobs_off")}
    assert (azure.status_code, azure.json()["error"]["code"]) == (409, "jobs_off")


@pytest.mark.parametrize("fields", [{}, {"task": "ocr", "pages": "2-3,5"}, {"temperature": "1", "seed": "7"}])
async def test_result_is_that_of_a_request(tmp_path: Path, fields: dict[str, str]) -> None:
    pdf = make_pdf(WORDS)
    async with running_service(job_dir=tmp_path) as service:
        job = await submit(service, pdf, **fields)
        assert (job["state"], job["name"], job["num_finished"]) == ("waiting", "a.pdf", 0)
        shown = await ended(service, job)
        read = (await result(service, job)).json()
        request = (await service.ocr(pdf, **fields)).json()
        text = await result(service, job, format="text")
        asked = await service.ocr(pdf, format="text", **fields)
        searchable = await result(service, job, format="searchable-pdf")
        hocr = await service.client.get(f"/jobs/{job['id']}/result", headers={"accept": "text/vnd.hocr+html"})
        await metric_becomes(service, 'deepsynth_jobs{state="done"}', 1)
        assert await service.metric('deepsynth_jobs_ended_total{outcome="done"}') == 1
        num_ok = sum(page["status"] == "ok" for page in request["pages"])
        assert await service.metric('deepsynth_job_pages_total{status="ok"}') == num_ok
    assert shown["state"] == "done"
    assert shown["num_finished"] == shown["num_pages"] == len(request["pages"])
    assert [page["page"] for page in shown["pages"]] == [page["page"] for page in request["pages"]]
    assert shown["created"] <= shown["started"] <= shown["ended"] < shown["expires"]
    assert without_times(read) == without_times(request)
    assert read["id"] == job["id"]
    assert (text.text, text.headers["content-type"]) == (asked.text, asked.headers["content-type"])
    assert text.headers["x-ocr-status"] == "ok"
    assert text.headers["content-disposition"] == 'attachment; filename="a.txt"'
    assert searchable.content.startswith(b"%PDF")
    assert hocr.headers["content-type"].startswith("text/vnd.hocr+html")


async def test_a_job_reads_pages_together(tmp_path: Path) -> None:
    pdf = make_pdf(WORDS[:3])
    fields = {"pages_together": "true", "blank_pages": "read", "confidence": "word"}
    async with running_service(SteeredEngine(FakeEngine(reads_pages_together=True)), job_dir=tmp_path) as service:
        job = await submit(service, pdf, **fields)
        await ended(service, job)
        read = (await result(service, job)).json()
        (sequence,) = service.engine.submitted
        request = (await service.ocr(pdf, **fields)).json()
    assert len(sequence.pages) == 3
    assert all(page["words"] for page in read["pages"])
    assert without_times(read) == without_times(request)


async def test_pages_are_given_while_the_rest_is_read(tmp_path: Path) -> None:
    async with running_service(slow(), job_dir=tmp_path, ocr_batch_size=1) as service:
        service.engine.hold(after=2)
        job = await submit(service, make_pdf(WORDS), format="text")
        await until(service, job, lambda shown: shown["num_finished"] == 2)
        shown = await show(service, job)
        early = (await result(service, job, format="json")).json()
        refused = await result(service, job)
        service.engine.release()
        await ended(service, job)
        late = await result(service, job)
    assert shown["state"] == "running"
    assert shown["num_finished"] == 2
    assert [page["page"] for page in shown["pages"] if page["status"] == "ok"] == [1, 2]
    assert early["status"] == "incomplete"
    assert len(early["pages"]) >= shown["num_finished"]
    assert all(page["text"] for page in early["pages"])
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
    # The format of the job is that of its result.
    assert late.headers["content-type"].startswith("text/plain")
    assert late.text.count("\f") == 5


async def test_a_clock_that_is_set_back_makes_no_time_negative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(slow(), job_dir=tmp_path) as service:
        job = await submit(service, make_pdf(WORDS))
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        answers = [(await result(service, job)).json(), (await service.ocr(png())).json()]
    assert all(answer["latency_ms"] >= 0 for answer in answers)
    assert all(each >= 0 for answer in answers for each in answer["timings_ms"].values())


async def test_a_failed_page_costs_that_page_and_a_document_without_any_other_fails(tmp_path: Path) -> None:
    engine = SteeredEngine(FakeEngine(fail_with={prompt_for(Task.FIGURE): "engine_failed"}))
    broken = encode(page_image(), "TIFF", save_all=True, append_images=[page_image("two", (4000, 10))])
    async with running_service(engine, job_dir=tmp_path) as service:
        partial = await submit(service, broken)
        failed = await submit(service, make_pdf(WORDS[:2]), task="figure")
        shown, gone = await ended(service, partial), await ended(service, failed)
        read, request = (await result(service, partial)).json(), (await service.ocr(broken)).json()
        answers = [await result(service, failed), await service.ocr(make_pdf(WORDS[:2]), task="figure")]
        assert await service.metric('deepsynth_jobs_ended_total{outcome="failed"}') == 1
    assert (shown["state"], shown["num_failed"]) == ("done", 1)
    assert read["status"] == "partial"
    assert without_times(read) == without_times(request)
    assert (gone["state"], gone["num_failed"], gone["error"]["code"]) == ("failed", 2, "engine_failed")
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(500, "engine_failed")}


async def test_what_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path, job_max_pages=4, max_pdf_pages=2) as service:

        async def code(data: bytes, **fields: str) -> tuple[int, Any]:
            response = await service.client.post("/jobs", files={"file": data}, data=fields)
            return response.status_code, response.json()["code"]

        assert await code(b"junk") == (415, "unsupported_format")
        assert await code(make_pdf(WORDS)) == (422, "too_many_pages")
        assert await code(make_pdf(WORDS), pages="7") == (422, "page_out_of_range")
        assert await code(png(), stream="true") == (422, "invalid_field")
        assert await code(png(), format="docx") == (422, "invalid_field")
        assert await code(png(), model_id="other") == (404, "model_not_found")
        assert await code(png(), webhook_url="https://hooks.example.org/") == (422, "webhook_not_allowed")
        for path in (
            "/jobs?state=done",
            "/jobs/job-1?x=1",
            "/jobs/job-1/result?format=docx",
            "/jobs?limit=0",
            "/jobs?limit=%C2%A0",
        ):
            response = await service.client.get(path, headers=KEY)
            assert (response.status_code, response.json()["code"]) == (422, "invalid_field"), path
        missing = await service.client.get("/jobs/job-1")
        assert (missing.status_code, missing.json()["code"]) == (404, "job_not_found")
        # Longer than a request may be, and the answer to such a request says so.
        job = await submit(service, make_pdf(WORDS), pages="1-4")
        assert (await ended(service, job))["num_pages"] == 4
        refused = (await service.ocr(make_pdf(WORDS[:4]))).json()
        also = (await service.ocr(make_pdf(WORDS), pages="1-4")).json()
    assert (refused["code"], refused["limit"]) == ("too_many_pages", 2)
    assert refused["advice"] == also["advice"] == "POST /jobs reads up to 4 pages without a deadline"
    assert not (await _files(tmp_path) - {job["id"]})


async def _files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "documents").iterdir()}


async def test_jobs_belong_to_the_key_that_they_came_with(tmp_path: Path) -> None:
    other = {"authorization": "Bearer another"}
    async with running_service(job_dir=tmp_path) as service:
        mine = [await submit(service, png(str(number)), KEY) for number in range(3)]
        free = await submit(service, png())
        await submit(service, png(), other)
        for job in mine:
            for headers in (None, other):
                for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/result"):
                    response = await service.client.get(path, headers=headers)
                    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
                erased = await service.client.delete(f"/jobs/{job['id']}", headers=headers)
                assert erased.status_code == 404
            assert (await service.client.get(f"/jobs/{job['id']}", headers=KEY)).status_code == 200
        assert (await service.client.get(f"/jobs/{free['id']}", headers=KEY)).status_code == 200
        nameless = await service.client.get("/jobs")
        assert (nameless.status_code, nameless.json()["code"]) == (401, "job_key_required")
        first = (await service.client.get("/jobs?limit=2", headers=KEY)).json()
        rest = (await service.client.get(f"/jobs?limit=2&before={first['next']}", headers=KEY)).json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == [job["id"] for job in reversed(mine)]
    assert rest["next"] is None


async def test_with_keys_a_job_belongs_to_the_name_of_its_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def write(**secrets: str) -> None:
        keys = [{"name": name, "sha256": digest_of(secret)} for name, secret in secrets.items()]
        file.write_text(json.dumps({"keys": keys}))

    write(ann="dso_ann", bob="dso_bob")
    ann, bob = {"authorization": "Bearer dso_ann"}, {"x-api-key": "dso_bob"}
    async with running_service(job_dir=tmp_path / "jobs", key_file=file) as service:
        job = await submit(service, png(), ann)
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            nobody = await service.client.request(method, f"/jobs/{job['id']}{path}")
            assert (nobody.status_code, nobody.json()["code"]) == (401, "key_required")
            other = await service.client.request(method, f"/jobs/{job['id']}{path}", headers=bob)
            assert (other.status_code, other.json()["code"]) == (404, "job_not_found")
        refused = await service.client.post("/jobs", files={"file": png()})
        assert (refused.status_code, refused.json()["code"]) == (401, "key_required")
        assert (await service.client.get("/jobs", headers=bob)).json()["jobs"] == []
        assert await service.metric('deepsynth_key_requests_total{key="ann"}') == 1
    write(ann="dso_new")
    async with running_service(job_dir=tmp_path / "jobs", key_file=file) as service:
        listed = (await service.client.get("/jobs", headers={"x-api-key": "dso_new"})).json()["jobs"]
    assert [each["id"] for each in listed] == [job["id"]]


async def test_behind_a_proxy_a_job_belongs_to_whom_the_proxy_names(tmp_path: Path) -> None:
    ann, bob = ({"x-forwarded-user": name, **KEY} for name in ("ann", "bob"))
    async with running_service(job_dir=tmp_path, job_owner_header="X-Forwarded-User") as service:
        job = await submit(service, png(), ann)
        assert (await service.client.get(f"/jobs/{job['id']}", headers=ann)).status_code == 200
        assert (await service.client.get(f"/jobs/{job['id']}", headers=bob)).status_code == 404
        assert (await service.client.get(f"/jobs/{job['id']}", headers=KEY)).status_code == 404


async def test_cancelled_job_frees_the_engine_and_leaves_nothing(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path, ocr_batch_size=4) as service:
        done = await submit(service, make_pdf(WORDS), query="needle-in-a-query", task="locate")
        await ended(service, done)
        service.engine.hold()
        running, waiting = await submit(service, make_pdf(WORDS)), await submit(service, make_pdf(WORDS))
        later = await submit(service, make_pdf(WORDS[:1]))
        await eventually(lambda: len(service.engine.submitted) == 6 + 2)
        for job in (running, waiting, done):
            assert (await service.client.delete(f"/jobs/{job['id']}")).status_code == 204
            assert (await service.client.get(f"/jobs/{job['id']}")).status_code == 404
        assert {request.sequence_id for request in service.engine.submitted[6:8]} <= set(service.engine.cancelled)
        service.engine.release()
        assert (await ended(service, later))["state"] == "done"
        assert await service.metric('deepsynth_jobs_ended_total{outcome="cancelled"}') == 2
        await metric_becomes(service, 'deepsynth_jobs{state="running"}', 0)
        # Every slot is back.
        assert service.services.gate.page_slots.num_free == 8
    assert await _files(tmp_path) == {later["id"]}
    assert b"needle-in-a-query" not in (tmp_path / "jobs.sqlite3").read_bytes()


async def test_jobs_are_erased_when_their_time_is_over(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path, job_ttl_s=0.5) as service:
        job = await submit(service, png())
        await eventually(lambda: not list((tmp_path / "documents").iterdir()))
        assert await service.metric('deepsynth_jobs_ended_total{outcome="done"}') == 1
        assert (await service.client.get(f"/jobs/{job['id']}")).status_code == 404
        await metric_becomes(service, 'deepsynth_jobs{state="done"}', 0)
        await metric_becomes(service, "deepsynth_job_bytes", 0)


async def test_quotas(tmp_path: Path) -> None:
    limit = 1024 * 1024
    noise = encode(page_image(), "BMP") + os.urandom(limit // 2)
    async with running_service(
        job_dir=tmp_path, job_max_unfinished=3, job_max_bytes=limit, max_upload_bytes=limit
    ) as service:
        jobs = [await submit(service, noise)]
        await ended(service, jobs[0])
        full = await service.client.post("/jobs", files={"file": noise})
        assert (full.status_code, full.json()["code"], full.json()["limit_bytes"]) == (507, "job_storage_full", limit)
        service.engine.hold()
        jobs += [await submit(service, png()) for _ in range(3)]
        unread = await service.client.post("/jobs", content=b"never read", headers={"content-type": "text/plain"})
        assert (unread.status_code, unread.json()["code"]) == (429, "job_queue_full")
        assert unread.headers["connection"] == "close"
        assert int(unread.headers["retry-after"]) >= 1
        service.engine.release()
        await ended(service, jobs[-1])
        await service.client.delete(f"/jobs/{jobs[0]['id']}")
        await submit(service, noise)


async def test_requests_are_read_beside_a_long_job(tmp_path: Path) -> None:
    async with running_service(slow(), job_dir=tmp_path, ocr_batch_size=4, job_share=0.25) as service:
        job = await submit(service, make_pdf(WORDS * 10))
        await eventually(lambda: service.engine.submitted)
        service.engine.hold()
        requests = [asyncio.create_task(service.ocr(png(str(number)))) for number in range(7)]
        # One of eight page slots is the job's, and all others are for requests.
        await eventually(lambda: service.services.gate.num_running == 7)
        assert len(service.engine.submitted) - (await show(service, job))["num_finished"] <= 1 + 7
        service.engine.release()
        assert {response.status_code for response in await asyncio.gather(*requests)} == {200}
        assert (await show(service, job))["state"] == "running"


async def test_documents_are_for_the_service_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "jobs"
    async with running_service(job_dir=folder) as service:
        job = await submit(service, png())
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (folder, folder / "documents", folder / "jobs.sqlite3", folder / "documents" / job["id"])
        }
    assert modes == {"jobs": 0o700, "documents": 0o700, "jobs.sqlite3": 0o600, job["id"]: 0o600}


async def test_after_a_restart_unread_pages_are_read_and_no_other(tmp_path: Path) -> None:
    pdf = make_pdf(WORDS)
    async with running_service(slow(), job_dir=tmp_path, ocr_batch_size=1, deadline_s=0.2) as service:
        service.engine.hold(after=2)
        job = await submit(service, pdf)
        waiting = await submit(service, png())
        await until(service, job, lambda shown: shown["num_finished"] == 2)
    stray = tmp_path / "documents" / "job-of-an-upload-that-was-cut-off"
    stray.write_bytes(b"x")
    async with running_service(job_dir=tmp_path) as service:
        shown = await ended(service, job)
        assert (await ended(service, waiting))["state"] == "done"
        assert len(service.engine.submitted) == 6 - 2 + 1
        read, request = (await result(service, job)).json(), (await service.ocr(pdf)).json()
    assert shown["state"] == "done"
    assert without_times(read) == without_times(request)
    assert not stray.exists()


async def test_a_stop_lets_pages_in_work_be_finished_and_begins_no_other(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path, ocr_batch_size=4) as service:
        service.engine.hold()
        job = await submit(service, make_pdf(WORDS))
        await eventually(lambda: len(service.engine.submitted) == 2)
        service.services.gate.drain()
        refused = await service.client.post("/jobs", files={"file": png()})
        service.engine.release()
        shown = await until(service, job, lambda shown: shown["num_finished"] == 2)
        submitted = service.engine.submitted
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert shown["state"] == "running"
    assert len(submitted) == 2
    async with running_service(job_dir=tmp_path) as service:
        assert (await ended(service, job))["num_finished"] == 6
        assert len(service.engine.submitted) == 4


async def test_a_folder_that_cannot_be_used_stops_the_start_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    failed = asyncio.Event()
    options = {"on_failed": failed.set}
    async with running_service(wait_ready=False, app_options=options, job_dir=tmp_path / "file") as service:
        await failed.wait()
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.client.get("/jobs/job-1")).json()["code"] == "not_ready"
    assert f"DEEPSYNTH_JOB_DIR: {tmp_path}/file is not a folder" in caplog.text
    failed.clear()
    async with running_service(wait_ready=False, app_options=options, job_dir=Path("/proc/jobs")):
        await failed.wait()
    assert "DEEPSYNTH_JOB_DIR: /proc/jobs cannot be used: No such file or directory" in caplog.text
    failed.clear()
    async with (
        running_service(job_dir=tmp_path / "shared"),
        running_service(wait_ready=False, app_options=options, job_dir=tmp_path / "shared"),
    ):
        await failed.wait()
    assert "is in use by another process" in caplog.text


async def test_pages_that_met_a_lost_engine_are_read_again(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path, ocr_batch_size=4) as service:
        service.engine.hold()
        job = await submit(service, make_pdf(WORDS))
        await eventually(lambda: len(service.engine.submitted) == 2)
        service.engine.lose()
        service.engine.release()
        service.engine._state = type(service.engine._state).READY
        shown = await ended(service, job)
        read = (await result(service, job)).json()
    assert (shown["num_failed"], read["status"]) == (0, "ok")


async def test_a_request_that_is_late_is_told_of_jobs(tmp_path: Path) -> None:
    async with running_service(slow(), job_dir=tmp_path, deadline_s=2, ocr_batch_size=1) as service:
        service.engine.hold()
        late = (await service.ocr(png())).json()
        # With a job next to it, it was not alone.
        job = await submit(service, png())
        await eventually(lambda: len(service.engine.submitted) == 2)
        beside = (await service.ocr(png())).json()
        service.engine.release()
        await ended(service, job)
        service.engine.hold(after=4)
        partial = (await service.ocr(make_pdf(WORDS))).json()
        service.engine.release()
    advice = "POST /jobs reads up to 1000 pages without a deadline"
    assert (late["code"], late["advice"], late["retryable"]) == ("deadline_exceeded", advice, False)
    assert (beside["code"], beside["advice"], beside["retryable"]) == ("deadline_exceeded", advice, True)
    errors = [page["error"] for page in partial["pages"] if page["status"] == "failed"]
    assert errors
    assert {(error["code"], error["advice"], error["retryable"]) for error in errors} == {
        ("deadline_exceeded", advice, True)
    }


async def test_a_document_that_ends_the_process_each_time_is_given_up(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path) as service:
        job = await submit(service, make_pdf(WORDS))
        await ended(service, job)
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as database:
        # As if the process had been killed in its first page three times.
        database.execute("UPDATE jobs SET state = 'running', ended_s = NULL, num_fruitless = 3")
        database.execute("UPDATE pages SET status = NULL, result = NULL WHERE page > 1")
    async with running_service(job_dir=tmp_path) as service:
        shown = await ended(service, job)
        read = (await result(service, job)).json()
        assert not service.engine.submitted
    assert (shown["state"], shown["num_failed"]) == ("done", 5)
    assert {page["error"]["code"] for page in read["pages"][1:]} == {"job_interrupted"}


async def test_folder_of_another_version_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as database:
        database.execute("PRAGMA user_version = 99")
    failed = asyncio.Event()
    async with running_service(wait_ready=False, app_options={"on_failed": failed.set}, job_dir=tmp_path):
        await failed.wait()
    assert "was written by another version of the service (format 99, not 2)" in caplog.text


async def test_every_method_of_a_path_is_allowed(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path) as service:
        answers = [await service.client.options(path) for path in ("/jobs", "/jobs/job-1", "/ocr")]
    assert [(answer.status_code, answer.headers["allow"]) for answer in answers] == [
        (405, "GET, POST"),
        (405, "DELETE, GET"),
        (405, "POST"),
    ]
