"""Jobs of a real service process that is killed in the middle, and started again."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.pdf import make_pdf
from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e

PDF = make_pdf([f"page number {number}" for number in range(12)], size_pt=(400, 100))


def follow(server: ServerProcess, job: str, num_finished: int) -> Any:
    end_s = time.monotonic() + 600
    while (shown := server.get(f"/jobs/{job}").json())["num_finished"] < num_finished:
        assert time.monotonic() < end_s, shown
        time.sleep(0.02)
    return shown


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_goes_on_after_the_process_was_ended(tmp_path: Path, number: signal.Signals) -> None:
    settings = {"JOB_DIR": str(tmp_path / "jobs"), "OCR_BATCH_SIZE": "2"}
    # So slow that it is not over before it is killed, on a machine that tells late how far it is.
    with running_server(**settings, FAKE_STEP_MS="150") as server:
        job = server.post("/jobs", files={"file": ("a.pdf", PDF)}).json()["id"]
        follow(server, job, 3)
        server.process.send_signal(number)
        assert server.process.wait(timeout=300) == -number
    with running_server(**settings, FAKE_STEP_MS="0") as server:
        shown = follow(server, job, 12)
        read = server.get(f"/jobs/{job}/result").json()
        num_read = sum(
            server.metric(f'deepsynth_job_pages_total{{status="{status}"}}') or 0 for status in ("ok", "unreadable")
        )
        request = server.post("/ocr", files={"file": PDF}).json()
        resumed = [line for line in server.log.read_text().splitlines() if "job resumed" in line]
    assert shown["num_failed"] == 0
    assert [page["text"] for page in read["pages"]] == [page["text"] for page in request["pages"]]
    # Pages that were stored before are not read again.
    assert len(resumed) == 1
    assert f"unread={num_read:.0f}" in resumed[0]
    assert 0 < num_read <= 9
