"""The service with keys: every route is closed by default, and each key does what it may."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.access.key import Key, digest_of, new_secret
from service.access.key_file import editing
from service.engine.fake import FakeEngine
from tests.support.fake_engine import SteeredEngine
from tests.support.service import RunningService, eventually, png, running_service

OPEN = {"/livez", "/readyz", "/metrics", "/", "/web/{name}"}
"""Health, metrics, and the playground's files, which ask for a key themselves."""
API_KEY = "a key for everyone"  # pragma: allowlist secret
ADMIN_KEY = "a key for operators"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    with editing(path):
        pass
    return path


def add(path: Path, name: str, **more: object) -> str:
    secret = new_secret()
    with editing(path) as keys:
        keys.append(Key.model_validate({"name": name, "sha256": digest_of(secret), **more}))
    return secret


async def ocr(service: RunningService, **headers: str):
    return await service.client.post("/ocr", files={"file": ("p.png", png())}, headers=headers)


async def test_without_keys_everyone_reads_and_keys_that_clients_send_are_ignored():
    async with running_service() as service:
        assert (await ocr(service)).status_code == 200
        assert (await ocr(service, **bearer("dummy"))).status_code == 200


async def test_every_route_but_the_open_ones_needs_a_key():
    async with running_service(api_key=API_KEY, admin_key=ADMIN_KEY) as service:
        seen = set()
        included = [each.original_router for each in service.app.routes if hasattr(each, "original_router")]
        for route in (each for router in included for each in router.routes):
            assert isinstance(route, APIRoute)
            for method in route.methods:
                answer = await service.client.request(method, re.sub(r"{.*?}", "x", route.path))
                if route.path in OPEN:
                    assert answer.status_code not in {401, 403}, route.path
                    continue
                seen.add(route.path)
                assert answer.status_code == 401, (method, route.path)
                assert answer.headers["www-authenticate"] == "Bearer"
        assert {"/ocr", "/v1/ocr", "/v1/models", "/process", "/preview", "/adapters"} <= seen


@pytest.mark.parametrize(
    "secret",
    ["", "dummy", API_KEY[:-1], API_KEY + "x", "é" * 20, "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")],
)
async def test_wrong_keys_are_refused_in_each_protocol(secret: str):
    async with running_service(api_key=API_KEY) as service:
        headers = {"authorization": b"Bearer " + secret.encode()}
        answer = await service.client.post("/ocr", files={"file": ("p.png", png())}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["code"] == ("key_invalid" if secret else "key_required")
        chat = await service.client.post("/v1/chat/completions", json={}, headers=headers)
        assert chat.status_code == 401
        assert chat.json()["error"]["type"] == "authentication_error"


async def test_each_header_carries_the_key():
    async with running_service(api_key=API_KEY) as service:
        assert (await ocr(service, **bearer(API_KEY))).status_code == 200
        assert (await ocr(service, **{"x-api-key": API_KEY})).status_code == 200
        assert (await ocr(service, **{"ocp-apim-subscription-key": API_KEY})).status_code == 200
        assert await service.metric('deepsynth_key_requests_total{key="api-key"}') == 3


async def test_scopes_are_kept_apart(key_file: Path):
    reader, keeper, operator = (
        add(key_file, "reader"),
        add(key_file, "keeper", scopes=["samples"]),
        add(key_file, "operator", scopes=["admin"]),
    )
    async with running_service(key_file=key_file) as service:
        assert (await ocr(service, **bearer(reader))).status_code == 200
        refused = await ocr(service, **bearer(keeper))
        assert (refused.status_code, refused.json()["code"], refused.json()["scope"]) == (403, "key_scope", "ocr")
        assert (await ocr(service, **bearer(operator))).status_code == 200
        command = await service.client.post("/adapters/x/pin", json={"why": "test"}, headers=bearer(reader))
        assert (command.status_code, command.json()["code"]) == (403, "key_scope")
        command = await service.client.post("/adapters/x/pin", json={"why": "test"}, headers=bearer(operator))
        assert command.json()["code"] == "adapters_off"
        assert await service.metric('deepsynth_key_rejections_total{code="key_scope"}') == 2


async def test_a_revoked_or_expired_key_stops_working_while_the_service_runs(key_file: Path):
    kept, revoked, expiring = (add(key_file, name) for name in ("kept", "revoked", "expiring"))
    async with running_service(key_file=key_file) as service:
        for secret in (kept, revoked, expiring):
            assert (await ocr(service, **bearer(secret))).status_code == 200
        now = datetime.now(UTC)
        with editing(key_file) as keys:
            keys[:] = [key.model_copy(update={"expires": now}) if key.name == "expiring" else key for key in keys]
            keys[:] = [key for key in keys if key.name != "revoked"]
        # The file is looked at once a second.
        async with asyncio.timeout(60):
            while (await ocr(service, **bearer(revoked))).status_code == 200:
                await asyncio.sleep(0.05)
        assert (await ocr(service, **bearer(kept))).status_code == 200
        for secret in (revoked, expiring):
            answer = await ocr(service, **bearer(secret))
            assert (answer.status_code, answer.json()["code"]) == (401, "key_invalid")


async def test_limits_are_those_of_the_key_and_are_given_back(key_file: Path):
    narrow = add(key_file, "narrow", max_concurrent=1)
    slow = add(key_file, "slow", requests_per_minute=1)
    engine = SteeredEngine()
    async with running_service(engine, key_file=key_file) as service:
        engine.hold()
        first = asyncio.create_task(ocr(service, **bearer(narrow)))
        await eventually(lambda: service.services.gate.num_running == 1)
        second = await ocr(service, **bearer(narrow))
        assert (second.status_code, second.json()["code"]) == (429, "key_concurrency")
        assert int(second.headers["retry-after"]) >= 1
        engine.release()
        assert (await first).status_code == 200
        assert (await ocr(service, **bearer(narrow))).status_code == 200
        assert (await ocr(service, **bearer(slow))).status_code == 200
        limited = await ocr(service, **bearer(slow))
        assert (limited.status_code, limited.json()["code"]) == (429, "key_rate_limited")
        assert service.services.access.limits.num_running("narrow") == 0


async def test_guessing_is_slowed_down_but_does_not_lock_out_generated_keys(key_file: Path):
    generated = add(key_file, "generated")
    async with running_service(key_file=key_file, admin_key=ADMIN_KEY) as service:
        codes = [(await ocr(service, **bearer(f"guess number {n}"))).json()["code"] for n in range(25)]
        assert codes.count("key_invalid") == 20
        assert codes[20:] == ["too_many_wrong_keys"] * 5
        command = await service.client.post("/adapters/x/pin", json={"why": "t"}, headers=bearer(ADMIN_KEY))
        assert command.json()["code"] == "too_many_wrong_keys"
        assert (await ocr(service, **bearer(generated))).status_code == 200


async def test_no_secret_reaches_logs_or_answers(key_file: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    right, wrong = add(key_file, "team-a"), new_secret()
    async with running_service(key_file=key_file, admin_key=ADMIN_KEY) as service:
        answers = [await ocr(service, **bearer(secret)) for secret in (right, wrong)]
        metrics = (await service.client.get("/metrics")).text
    everything = caplog.text + metrics + "".join(f"{each.text}{each.headers}" for each in answers)
    everything += "".join(str(record.__dict__) for record in caplog.records)
    for secret in (right, wrong, ADMIN_KEY):
        assert secret not in everything
        assert digest_of(secret) not in everything
    assert "team-a" in everything


async def test_openapi_names_the_schemes():
    async with running_service() as service:
        document = (await service.client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"].keys() == {"HTTPBearer", "APIKeyHeader", "AzureKeyHeader"}
    assert document["paths"]["/ocr"]["post"]["security"]
    assert "security" not in document["paths"]["/livez"]["get"]


async def test_a_client_with_many_requests_does_not_keep_another_waiting(key_file: Path):
    many, one = add(key_file, "many"), add(key_file, "one")
    engine = SteeredEngine(FakeEngine(batch_size=1, step_s=0.002))
    limits = {"ocr_batch_size": 1, "max_concurrent_requests": 64}
    async with running_service(engine, key_file=key_file, **limits) as service:
        order = []

        async def send(secret: str, name: str) -> None:
            answer = await ocr(service, **bearer(secret))
            if answer.status_code == 200:
                order.append(name)
            else:
                assert (answer.status_code, name) == (429, "many")

        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(send(many, "many"))
            await eventually(lambda: len(order) >= 3)
            assert service.services.gate.num_waiting + service.services.gate.num_running > 40
            num_before = len(order)
            group.create_task(send(one, "one"))
    # Behind the pages that had slots, and one page that came before it.
    assert order.index("one") - num_before <= 8
    assert len(order) >= 64
