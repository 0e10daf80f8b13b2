"""Damaged images and PDFs: read, or refused with a code of the file, by processes that stay alive.

python -m pytest tests/chaos/test_malformed_files.py --long        2,500 files
"""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from PIL import Image

from service.errors import error_classes
from service.telemetry.metrics import RESTART_REASONS
from tests.chaos.test_malformed_forms import FORM, LEAK, field, form, upload
from tests.support.corpus import READ, REFUSED, encoded, page_pixels
from tests.support.load import RawClient, allowed_s, percentile
from tests.support.server import ServerProcess, running_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

Draw = random.Random
LONGEST_S = 10.0
IMAGES = {
    "PNG": lambda: encoded(page_pixels("RGB"), "PNG"),
    "PNG, palette": lambda: encoded(page_pixels("P"), "PNG"),
    "JPEG": lambda: encoded(page_pixels("RGB"), "JPEG"),
    "JPEG, progressive": lambda: encoded(page_pixels("L"), "JPEG", progressive=True),
    "WebP": lambda: encoded(page_pixels("RGB"), "WEBP"),
    "WebP, lossless": lambda: encoded(page_pixels("RGB"), "WEBP", lossless=True),
    "TIFF, LZW": lambda: encoded(page_pixels("RGB"), "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": lambda: encoded(page_pixels("L"), "TIFF", compression="tiff_deflate"),
    "BMP": lambda: encoded(page_pixels("RGB"), "BMP"),
    "AVIF": lambda: encoded(page_pixels("RGB"), "AVIF"),
}
CODES = {
    "ok", "decode_out_of_memory", "empty_file", "extreme_aspect_ratio", "page_out_of_range", "pdf_encrypted",
    "too_many_pages", "too_many_pixels", "too_many_vision_tokens", "undecodable_file", "unsupported_format",
    "unsupported_pixel_type",
}  # fmt: skip
"""What a damaged file may get; neither a crash nor a timeout of its process."""
SUPPORTED = {"PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "JPEG2000", "AVIF", "HEIF", "PDF", "MPO"}
OTHERS = [
    b"PK\3\4" + b"\0" * 60,
    b"\x7fELF\2\1\1" + b"\0" * 60,
    b"<svg xmlns='x'/>",
    b"<!doctype html><p>x",
    b"%!PS-Adobe-3.0 EPSF",
]


def damaged(draw: Draw, data: bytes) -> bytes:
    """One kind of damage."""
    body = bytearray(data)
    start = draw.randrange(len(body))
    end = min(len(body), start + draw.randrange(1, 200))
    match draw.randrange(6):
        case 0:
            return data[:start]
        case 1:
            for _ in range(draw.randrange(1, 12)):
                body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        case 2:
            body[start:end] = bytes(end - start)
        case 3:
            del body[start:end]
        case 4:
            # Lengths and counts are often in the first bytes.
            place = draw.randrange(min(len(body) - 4, 128))
            body[place : place + 4] = draw.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\x80\0\0\0"])
        case _:
            body[start:start] = draw.randbytes(end - start)
    return bytes(body)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(LOG_LEVEL="error") as running:
        yield running


def test_damaged_files_are_read_or_refused_and_cost_no_process(is_long, server, length, figures):
    draw = random.Random(2500)
    kinds = [(name, make()) for name, make in {**IMAGES, **READ}.items()]
    wrong: dict[str, str] = {}
    codes: Counter[str] = Counter()
    seconds = []
    with contextlib.closing(RawClient(server.port)) as client:

        def send(name: str, data: bytes, expected: set[str]) -> None:
            start_s = time.perf_counter()
            status, said, text = client.post("/ocr", form(field("mode", "tiny"), upload(data)), FORM)
            seconds.append(time.perf_counter() - start_s)
            code = "ok" if status == 200 else said.get("code", f"status {status}")
            codes[code] += 1
            known = error_classes().get(code)
            if code not in expected or (known is not None and known.status != status):
                wrong[name] = f"{status} {text[:200]}"
            elif status != 200 and LEAK.search(text):
                wrong[name] = text

        for name, (make, code) in REFUSED.items():
            send(name, make(), {code})
        for number, data in enumerate(OTHERS):
            send(f"other {number}", data, {"unsupported_format"})
        for number in range(length(60, 2500)):
            name, data = draw.choice(kinds)
            send(f"{name}, {number}", damaged(draw, data), CODES)
    restarts = {
        reason: server.metric(f'deepsynth_decode_children_restarts_total{{reason="{reason}"}}')
        for reason in RESTART_REASONS
    }
    figures(files=len(seconds), codes=dict(codes), restarts=restarts)
    figures(p99_s=percentile(seconds, 0.99), longest_s=max(seconds))
    assert wrong == {}
    assert not [reason for reason, count in restarts.items() if count and reason != "decode_out_of_memory"]
    assert max(seconds) < allowed_s(LONGEST_S, seconds, is_long=is_long)
    assert server.process.poll() is None
    assert "Traceback" not in server.log.read_text()


@pytest.mark.filterwarnings("ignore:.* image format is deprecated")
def test_files_of_other_formats_are_refused_whatever_they_are_called(server, figures):
    Image.init()
    refused: dict[str, str] = {}
    with contextlib.closing(RawClient(server.port)) as client:
        for kind in sorted(set(Image.SAVE) - SUPPORTED):
            for mode in ("RGB", "L", "1", "RGBA"):
                stream = io.BytesIO()
                with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
                    Image.new(mode, (64, 64)).save(stream, kind)
                    _, said, text = client.post("/ocr", form(upload(stream.getvalue())), FORM)
                    refused[kind] = said.get("code", text[:80])
                    break
    figures(formats=" ".join(refused))
    assert len(refused) >= 10
    assert set(refused.values()) == {"unsupported_format"}, refused
