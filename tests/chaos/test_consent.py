"""Settings, headers, routes and outcomes in random combinations: a page is kept exactly when it should be.

python -m pytest tests/chaos/test_consent.py --long        10,000 combinations
"""

from __future__ import annotations

import base64
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.config import load_settings
from service.errors import ConfigurationError
from shared.contract.samples import parse_record, record_files
from tests.support.load import QUICK, numbered_page
from tests.support.service import RunningService, eventually, running_service
from trainer.data.sources.images import check_image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

REQUESTS_PER_START = {False: 30, True: 400}
"""In the short and the long form."""
TRUE = ["true", "True", "1", "yes", "on"]
FALSE = ["false", "False", "0", "no", "off", "", None]
UNCLEAR = ["maybe", "2", "tru", "true false", "-"]
"""With these the service does not start."""
NO_STORE: list[tuple[tuple[str, ...], bool | None]] = [
    ((), True),
    (("0",), True),
    (("false",), True),
    (("FALSE ",), True),
    (("",), None),
    (("1",), False),
    (("true",), False),
    ((" TRUE",), False),
    (("0", "1"), False),
    (("true", "false"), False),
    (("1", "1"), False),
    (("0", "0"), True),
    (("yes",), None),
    (("0, 1",), None),
    (("no-store",), None),
    (("0", "perhaps"), None),
]
"""Values of the header, and whether they allow keeping; None: they say neither, and the request is refused."""


@dataclass(frozen=True)
class Reply:
    status: int
    is_kept: bool
    """Whether this request's page is, if all else allows it."""


def form(fields: dict[str, str], path: str = "/ocr", *, keeps: bool = True, status: int = 200):
    async def send(client: httpx.AsyncClient, page: bytes, headers: list[tuple[str, str]]) -> httpx.Response:
        data = fields if path == "/preview" else {**QUICK, **fields}
        return await client.post(path, files={"file": ("p.png", page)}, data=data, headers=headers)

    return send, Reply(status, keeps)


def data_url(page: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(page).decode()}"


def chat(*, keeps: bool, status: int = 200, **members: object):
    async def send(client: httpx.AsyncClient, page: bytes, headers: list[tuple[str, str]]) -> httpx.Response:
        parts = [{"type": "image_url", "image_url": {"url": data_url(page)}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": parts}], **members}
        return await client.post("/v1/chat/completions", json=body, headers=headers)

    return send, Reply(status, keeps)


def mistral():
    async def send(client: httpx.AsyncClient, page: bytes, headers: list[tuple[str, str]]) -> httpx.Response:
        body = {"model": "fake", "document": {"type": "image_url", "image_url": data_url(page)}}
        return await client.post("/v1/ocr", json=body, headers=headers)

    return send, Reply(200, True)


ROUTES = {
    "ocr": form({}),
    "other name": form({}, "/api/ocr/run"),
    "stream": form({"stream": "true"}),
    "text": form({"format": "text"}),
    "markdown": form({"task": "markdown"}),
    "no such model": form({"model_id": "none"}, keeps=False, status=404),
    "no such task": form({"task": "none"}, keeps=False, status=422),
    "no such page": form({"pages": "9"}, keeps=False, status=422),
    "preview": form({}, "/preview", keeps=False),
    "chat": chat(keeps=True),
    "chat, store": chat(keeps=False, status=400, store=True),
    "chat, no store": chat(keeps=False, store=False),
    "mistral": mistral(),
}


@dataclass
class Tally:
    combinations: int = 0
    kept: int = 0
    starts: int = 0
    refused_starts: int = 0


async def until_kept(service: RunningService) -> None:
    keeper = service.services.samples
    if keeper is not None:
        await eventually(lambda: keeper.num_waiting == 0, seconds=60)


def kept_in(folder: Path) -> set[str]:
    return {parse_record(path.read_bytes()).sha256 for path in record_files(folder)} if folder.exists() else set()


async def run_combinations(draw: random.Random, options: dict, count: int, first: int, seen: Counter[str]) -> set[str]:
    """Send pages in random combinations; the digests of those that should be kept."""
    expected: set[str] = set()
    async with running_service(**options) as service:
        for number in range(first, first + count):
            values, is_willing = draw.choice(NO_STORE)
            name = draw.choice(list(ROUTES))
            send, reply = ROUTES[name]
            page = numbered_page(number)
            answer = await send(service.client, page, [("x-deepsynth-no-store", value) for value in values])
            assert answer.status_code == (422 if is_willing is None else reply.status), (name, values, answer.text)
            seen[name] += 1
            if is_willing and reply.is_kept and options["ocr_save_samples"] and options["ocr_privacy_allowed"]:
                expected.add(check_image(page).pixels_sha256)
        await until_kept(service)
    return expected


async def test_pages_are_kept_exactly_when_everything_allows_it(is_long, length, tmp_path, monkeypatch, figures):
    draw = random.Random(10_000)
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setenv("TMPDIR", str(spool))
    total, tally, seen = length(300, 10_000), Tally(), Counter()
    while tally.combinations < total:
        values = {
            "DEEPSYNTH_OCR_SAVE_SAMPLES": draw.choice([*TRUE * 3, *FALSE, *UNCLEAR]),
            "DEEPSYNTH_OCR_PRIVACY_ALLOWED": draw.choice([*TRUE * 3, *FALSE, *UNCLEAR]),
            "DEEPSYNTH_SAMPLE_IMAGES": draw.choice(["full", "thumbnail", ""]),
        }
        environment = {name: value for name, value in values.items() if value is not None}
        tally.starts += 1
        if set(values.values()) & set(UNCLEAR):
            with pytest.raises(ConfigurationError):
                load_settings(environment, env_file=None)
            tally.refused_starts += 1
            tally.combinations += 1
            continue
        settings = load_settings(environment, env_file=None)
        may_keep = {values["DEEPSYNTH_OCR_SAVE_SAMPLES"], values["DEEPSYNTH_OCR_PRIVACY_ALLOWED"]} <= set(TRUE)
        folder = tmp_path / f"samples-{tally.starts}"
        options = {
            "ocr_save_samples": settings.ocr_save_samples,
            "ocr_privacy_allowed": settings.ocr_privacy_allowed,
            "sample_images": settings.sample_images,
            "sample_dir": folder,
            "blank_pages": "read",
        }
        count = min(REQUESTS_PER_START[is_long], total - tally.combinations)
        expected = await run_combinations(draw, options, count, tally.combinations, seen)
        assert kept_in(folder) == expected
        assert bool(expected) <= may_keep
        assert folder.exists() == may_keep
        assert [path for path in spool.rglob("*") if path.is_file()] == []
        tally.combinations += count
        tally.kept += len(expected)
    figures(combinations=tally.combinations, kept=tally.kept, starts=tally.starts, refused_starts=tally.refused_starts)
    figures(routes=dict(seen))
    assert tally.kept > total // 40
