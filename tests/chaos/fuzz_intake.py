"""Coverage-guided fuzzing of what takes clients' bytes: forms, JSON and files. Needs atheris, of the extra dev.

    python tests/chaos/fuzz_intake.py form                                  until it finds something, or Ctrl-C
    python tests/chaos/fuzz_intake.py file -max_total_time=1800             half an hour
    python tests/chaos/fuzz_intake.py json -runs=50000 --corpus FOLDER
    python tests/chaos/fuzz_intake.py file build/fuzz/crash-1234            again what was found

Everything after the target goes to libFuzzer, apart from --corpus. A finding is an exception that is not one of the
service's errors of the client, a crash, more than 2 GiB, or an input that takes 20 s; its input is left in build/fuzz.
Inputs that reach new code are kept in the corpus for the next time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CORPUS = Path("build/fuzz")
CONTENT_TYPES = (b"multipart/form-data; boundary=edge", b'multipart/form-data;boundary="e d"', b"text/plain")
INSTRUMENTED = ["service.routes", "service.intake", "shared.images", "starlette", "python_multipart", "PIL"]
Target = Callable[[bytes], None]


def form_target() -> Target:
    """The first byte chooses the content type, the rest is the body, in two pieces."""
    from starlette.requests import Request

    from service.config import ServiceSettings
    from service.deps import RequestBounds
    from service.errors import ClientError
    from service.routes.form import OcrFields, receive_form

    settings = ServiceSettings()
    bounds = RequestBounds(
        max_upload_bytes=1 << 20,
        body_idle_s=60.0,
        body_total_s=60.0,
        deadline_s=60.0,
        document_deadline_s=None,
        max_new_tokens=100,
        max_frames=16,
        max_pdf_pages=16,
        blank_pages=settings.blank_pages,
        min_confidence=settings.min_confidence,
        review_threshold=None,
        min_coverage=settings.min_coverage,
        orientation=settings.orientation,
    )
    loop = asyncio.new_event_loop()

    async def receive_all(data: bytes) -> None:
        content_type = CONTENT_TYPES[data[0] % len(CONTENT_TYPES)] if data else b""
        half = len(data) // 2 + 1
        messages = iter(
            [
                {"type": "http.request", "body": data[1:half], "more_body": True},
                {"type": "http.request", "body": data[half:], "more_body": False},
            ]
        )

        async def receive() -> dict[str, object]:
            return next(messages)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/ocr",
            "query_string": b"",
            "headers": [(b"content-type", content_type)],
        }
        with contextlib.suppress(ClientError):
            await receive_form(Request(scope, receive), bounds, OcrFields)

    return lambda data: loop.run_until_complete(receive_all(data))


def json_target() -> Target:
    """The first byte chooses the protocol, the rest is the body."""
    from service.errors import ClientError
    from service.routes.chat import ChatRequest
    from service.routes.json_body import parse_json
    from service.routes.mistral import MistralRequest
    from service.routes.samples import parse_feedback

    def parse(data: bytes) -> None:
        parsers: list[Callable[[bytes], object]] = [
            lambda body: parse_json(body, ChatRequest),
            lambda body: parse_json(body, MistralRequest),
            parse_feedback,
        ]
        with contextlib.suppress(ClientError):
            parsers[data[0] % len(parsers) if data else 0](data[1:])

    return parse


def file_target() -> Target:
    """An image or a PDF, of which the first page is read."""
    from service.errors import ClientError
    from service.intake.decoding import OpenDocument
    from service.intake.document import Document
    from service.intake.limits import DecodeTask, IntakeLimits
    from shared.deepseek_ocr.geometry import GeometryConfig, Mode

    limits = IntakeLimits(max_pixels=1_000_000, max_side_px=4000, max_frames=4, max_pdf_pages=4, pdf_dpi=36)
    geometry = GeometryConfig()

    def read(data: bytes) -> None:
        try:
            document = OpenDocument(Document(data, limits))
        except ClientError:
            return
        try:
            document.decode(DecodeTask(document.contents.pages[0], Mode.TINY, geometry, turn_degrees=None))
        except ClientError:
            pass
        finally:
            document.close()

    return read


def form_seeds() -> list[bytes]:
    """Forms as the malformed ones are made of."""
    import random

    from tests.chaos.test_malformed_forms import SHAPES, WHOLE

    draw = random.Random(1)
    return [b"\0" + WHOLE, *[b"\0" + shape(draw)[0] for shape in SHAPES]]


def json_seeds() -> list[bytes]:
    """One request of each protocol."""
    url = b"data:image/png;base64,aGVsbG8="
    return [
        b'\0{"model":"nano","messages":[{"role":"user","content":[{"type":"text","text":"OCR"},'
        b'{"type":"image_url","image_url":{"url":"' + url + b'"}}]}],"stream":false,"max_tokens":9}',
        b'\1{"model":"nano","document":{"type":"document_url","document_url":"' + url + b'"},"pages":[0]}',
        b'\2{"id":"ocr-1","page":1,"text":"words"}',
    ]


def file_seeds() -> list[bytes]:
    """Files of all kinds."""
    from tests.chaos.test_malformed_files import IMAGES
    from tests.support.corpus import READ, REFUSED

    makers = [*IMAGES.values(), *READ.values(), *[make for make, _ in REFUSED.values()]]
    return [data for data in (make() for make in makers) if len(data) < 100_000]


TARGETS: dict[str, tuple[Callable[[], Target], Callable[[], list[bytes]]]] = {
    "form": (form_target, form_seeds),
    "json": (json_target, json_seeds),
    "file": (file_target, file_seeds),
}


def main() -> None:
    """Fuzz until libFuzzer ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reach new code; build/fuzz/TARGET if unset")
    options, more = parser.parse_known_args()
    try:
        import atheris
    except ImportError:
        parser.error("this needs the package atheris, which has wheels for Linux on x86-64")
    corpus = options.corpus or CORPUS / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    make_target, make_seeds = TARGETS[options.target]
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = make_target()
    for number, seed in enumerate(make_seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    # An input is given to be run again, without the corpus.
    folders = [] if any(Path(word).is_file() for word in more) else [str(corpus)]
    atheris.Setup(
        [
            sys.argv[0],
            "-rss_limit_mb=4096",
            "-timeout=20",
            "-max_len=100000",
            f"-artifact_prefix={CORPUS}/",
            *more,
            *folders,
        ],
        target,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
