"""Two hundred marks in keys, names, options, headers and documents: none turns up where it does not belong.

    python -m pytest tests/chaos/test_canaries.py

Both forms are the same. The sinks are the log at level debug, spans, metrics, answers that refuse, command lines, and
what is left in the folder for temporary files. An answer may name a field that the service does not know, in the answer
to its sender alone; marks in such names are searched for in all other sinks.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from itertools import cycle
from pathlib import Path

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.access.key import Key, digest_of
from service.jobs.origins import SECRET_PREFIX
from tests.support.load import children_of, engine_pid
from tests.support.pdf import make_pdf
from tests.support.server import ServerProcess, running_server
from tests.support.service import encode, page_image
from tests.support.stub_service import serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CANARIES = 200
ECHOED = "an unknown field's name"
Plant = Callable[[str], str]


class Canaries:
    """Makes marks, and finds them again."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def plant(self, place: str) -> str:
        mark = f"cnry{len(self.places):04d}{base64.b32encode(os.urandom(10)).decode().lower()}"
        self.places[mark] = place
        return mark

    def found_in(self, data: bytes) -> list[str]:
        """The places of marks that are there, in any case."""
        lowered = data.lower()
        return [place for mark, place in self.places.items() if mark.encode() in lowered]


def marked_png(plant: Plant) -> bytes:
    texts = PngInfo()
    texts.add_text("Title", plant("text of a PNG"))
    texts.add_itxt("Comment", plant("compressed text of a PNG"), zip=False)
    exif = Image.Exif()
    exif[0x010E] = plant("EXIF description")
    exif[0x8825] = {0x1D: plant("EXIF GPS date")}
    return encode(page_image(plant("print on a page")), pnginfo=texts, exif=exif.tobytes())


def marked_jpeg(plant: Plant) -> bytes:
    return encode(page_image("Words on a page"), "JPEG", comment=plant("comment of a JPEG").encode())


def marked_pdf(plant: Plant) -> bytes:
    return make_pdf([plant("text of a PDF")]).replace(
        b"%PDF-1.4\n", b"%PDF-1.4\n%" + plant("comment of a PDF").encode()
    )


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def chat(content: list[dict[str, object]], **members: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **members}


Send = Callable[[httpx.Client, Plant], httpx.Response]


def upload(make: Callable[[Plant], bytes], path: str = "/ocr", **fields: str) -> Send:
    def send(client: httpx.Client, plant: Plant) -> httpx.Response:
        files = {"file": (plant("file name") + ".png", make(plant))}
        planted = {name: value.format(plant(f"field {name}")) for name, value in fields.items()}
        return client.post(path, files=files, data=planted)

    return send


def headers(name: str, value: str = "{}", path: str = "/v1/models") -> Send:
    return lambda client, plant: client.get(path, headers={name: value.format(plant(f"header {name}"))})


def to(path: str, method: str = "GET") -> Send:
    return lambda client, plant: client.request(method, path.format(plant(f"{method} {path}")))


def unknown_field(client: httpx.Client, plant: Plant) -> httpx.Response:
    return client.post("/ocr", files={"file": marked_png(plant)}, data={plant(ECHOED): plant("unknown field's value")})


def posted(path: str, make: Callable[[Plant], object]) -> Send:
    return lambda client, plant: client.post(path, json=make(plant))


def raw(path: str, data: bytes, content_type: str) -> Send:
    return lambda client, plant: client.post(
        path, content=data + plant(f"body of {path}").encode(), headers={"content-type": content_type}
    )


def process(client: httpx.Client, plant: Plant) -> httpx.Response:
    return client.put("/process", content=marked_png(plant), headers={"x-filename": plant("header x-filename")})


SENT: list[Send] = [
    upload(marked_png),
    upload(marked_jpeg),
    upload(marked_pdf),
    upload(marked_png, task="locate", query="{}"),
    upload(marked_png, stream="true"),
    upload(marked_png, task="{}"),
    upload(marked_png, mode="{}"),
    upload(marked_png, pages="{}"),
    upload(marked_png, model_id="{}"),
    upload(marked_png, model_id="{}@7"),
    upload(lambda plant: plant("junk file").encode()),
    upload(lambda plant: marked_png(plant)[:150]),
    upload(lambda plant: marked_pdf(plant)[:90]),
    upload(lambda plant: b""),
    upload(marked_png, "/ocr?query={}&task=locate"),
    upload(marked_png, "/preview"),
    upload(marked_png, "/jobs"),
    upload(marked_png, "/jobs", webhook_url="https://elsewhere.example.org/{}"),
    upload(marked_png, "/jobs", webhook_url="http://127.0.0.1:9/{}"),
    unknown_field,
    headers("authorization", "Bearer {}"),
    headers("authorization", "Basic {}"),
    headers("x-api-key"),
    headers("ocp-apim-subscription-key"),
    headers("user-agent"),
    headers("cookie", "session={}"),
    headers("referer", "https://example.org/{}"),
    headers("tracestate", "vendor={}"),
    headers("baggage", "user={}"),
    headers("x-forwarded-for"),
    headers("x-deepsynth-no-store"),
    headers("x-request-id", "not an id {}"),
    headers("accept"),
    to("/{}"),
    to("/v1/models/{}"),
    lambda client, plant: client.get(f"/v1/models?{plant(ECHOED)}={plant('value of an option in the URL')}"),
    to("/jobs/{}"),
    to("/samples/{}", "DELETE"),
    to("/adapters/{}/pin", "POST"),
    to("/livez", "PATCH"),
    posted("/v1/chat/completions", lambda plant: chat([{"type": "text", "text": plant("chat text")}])),
    posted(
        "/v1/chat/completions",
        lambda plant: chat(
            [
                {"type": "text", "text": plant("chat text")},
                {"type": "image_url", "image_url": {"url": data_url(marked_png(plant))}},
            ],
            user=plant("chat user"),
        ),
    ),
    posted(
        "/v1/chat/completions",
        lambda plant: chat([{"type": "image_url", "image_url": {"url": f"https://x.org/{plant('URL of an image')}"}}]),
    ),
    posted("/v1/chat/completions", lambda plant: chat([], model=plant("chat model"))),
    posted(
        "/v1/ocr",
        lambda plant: {
            "model": "fake",
            "document": {
                "type": "document_url",
                "document_url": data_url(marked_pdf(plant)),
                "document_name": plant("document name"),
            },
        },
    ),
    posted(
        "/documentintelligence/documentModels/prebuilt-read:analyze",
        lambda plant: {"base64Source": base64.b64encode(marked_pdf(plant)).decode()},
    ),
    posted(
        "/documentintelligence/documentModels/prebuilt-read:analyze",
        lambda plant: {"urlSource": f"https://x.org/{plant('URL of a document')}"},
    ),
    posted("/feedback", lambda plant: {"id": plant("answer id"), "text": plant("corrected text")}),
    raw("/v1/ocr", b'{"model": "', "application/json"),
    raw("/feedback", b"[", "application/json"),
    raw("/ocr", b"--edge\r\nContent-Disposition: form-data; name=", "multipart/form-data; boundary=edge"),
    raw("/ocr", b"plain ", "text/plain"),
    process,
]  # fmt: skip


class Collector:
    """Takes spans, as an OTLP collector does."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.handler = Handler


def key_file(folder: Path, secret: str) -> Path:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": [Key(name="team", sha256=digest_of(secret)).model_dump(mode="json")]}))
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the service."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def lose_processes(server: ServerProcess, client: httpx.Client, plant: Plant) -> list[httpx.Response]:
    """Kill the engine, and then what decodes, while a marked page is with them."""
    answers: list[httpx.Response] = []
    for find in (engine_pid, lambda it: next(p for p, line in children_of(it.process.pid).items() if "intake" in line)):
        # On a busy machine a page may be read before anything can be killed.
        is_running = False
        while not is_running:
            thread = threading.Thread(target=lambda: answers.append(upload(marked_png)(client, plant)))
            thread.start()
            while thread.is_alive() and not is_running:
                is_running = server.metric("deepsynth_requests_running") == 1
            if is_running:
                os.kill(find(server), signal.SIGKILL)
            thread.join()
        while client.get("/readyz").status_code != 200:
            pass
    return answers


def test_canaries_are_found_nowhere(temporary, tmp_path, figures):
    canaries = Canaries()
    plant = canaries.plant
    collector = Collector()
    api_key, other_key = plant("key of the settings"), plant("key of the key file")
    with serving(collector.handler) as url, running_server(
        API_KEY=api_key,
        KEY_FILE=str(key_file(tmp_path, other_key)),
        ADMIN_KEY=plant("admin key"),
        CASCADE_URL="http://127.0.0.1:9",
        CASCADE_KEY=plant("key of the second reader"),
        JOB_DIR=str(tmp_path / "jobs"),
        JOB_WEBHOOK_ORIGINS="http://127.0.0.1:9",
        JOB_WEBHOOK_SECRET=SECRET_PREFIX + base64.b64encode(plant("webhook secret").encode()).decode(),
        ENABLE_TRACING="true",
        OTLP_ENDPOINT=f"{url}/v1/traces",
        LOG_LEVEL="debug",
        LOG_FORMAT="json",
        FAKE_STEP_MS="20",
    ) as server, httpx.Client(base_url=server.url, timeout=300) as client:  # fmt: skip
        answers: list[httpx.Response] = []
        keys = cycle([api_key, other_key])
        for number, send in enumerate(cycle(SENT)):
            if number >= len(SENT) and len(canaries.places) >= CANARIES:
                break
            client.headers["authorization"] = f"Bearer {next(keys)}"
            answers.append(send(client, plant))
        answers += lose_processes(server, client, plant)
        metrics = client.get("/metrics").content
        lines = "\n".join(children_of(server.process.pid).values()).encode()
        lines += Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        server.stop()
        log = server.log.read_bytes()
    refusals = [answer for answer in answers if answer.status_code >= 400]
    said = b"\n".join(answer.content + str(answer.headers).encode() for answer in refusals)
    spans = b"\n".join(collector.received)
    left = b"\n".join(path.name.encode() + path.read_bytes() for path in temporary.rglob("*") if path.is_file())
    found = {
        "log": canaries.found_in(log),
        "spans": canaries.found_in(spans),
        "metrics": canaries.found_in(metrics),
        "refusals": [place for place in canaries.found_in(said) if place != ECHOED],
        "command lines": canaries.found_in(lines),
        "temporary files": canaries.found_in(left),
    }
    codes = sorted({answer.status_code for answer in answers})
    figures(canaries=len(canaries.places), requests=len(answers), statuses=codes, log_bytes=len(log))
    figures(span_bytes=len(spans), found=found)
    assert len(canaries.places) >= CANARIES
    # That there is something to look through, and that marks are found where they are.
    assert log.count(b'"message": "request"') >= len(answers) // 2
    assert len(spans) > 10_000
    assert len(metrics) > 10_000
    assert ECHOED in canaries.found_in(said)
    assert {sink: places for sink, places in found.items() if places} == {}
