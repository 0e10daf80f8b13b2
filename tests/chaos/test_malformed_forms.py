"""Malformed multipart bodies: each gets the code of what is wrong with it, and none an error of the server.

python -m pytest tests/chaos/test_malformed_forms.py --long        20,000 bodies
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable

import pytest

from service.errors import error_classes
from tests.support.load import RawClient, allowed_s, percentile
from tests.support.server import running_server
from tests.support.service import png

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

FORM = "multipart/form-data; boundary=edge"
PAGE = png("A page", (96, 48))
JUNK = b"neither an image nor a PDF " * 4
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|\.py\b|site-packages|/(?:tmp|home|usr|root|work)/")
LONGEST_S = 5.0
"""For a request on a machine that does much else; patterns that explode take minutes."""

Case = tuple[bytes, str | None, set[str]]
"""A body, its content type, and the codes that it may get."""
Draw = random.Random


def part(disposition: bytes, content: bytes, *headers: bytes, edge: bytes = b"edge") -> bytes:
    lines = [b"--" + edge, b"Content-Disposition: " + disposition, *headers, b"", content]
    return b"\r\n".join(lines) + b"\r\n"


def field(name: str, value: str) -> bytes:
    return part(b'form-data; name="' + name.encode() + b'"', value.encode())


def upload(content: bytes = PAGE, name: bytes = b"page.png") -> bytes:
    return part(b'form-data; name="file"; filename="' + name + b'"', content, b"Content-Type: image/png")


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--edge--\r\n"


WHOLE = form(field("mode", "tiny"), upload(), field("task", "free"))


def cut(draw: Draw) -> Case:
    end = WHOLE.rindex(b"--edge--") + len(b"--edge")
    return WHOLE[: draw.randrange(1, end)], FORM, {"malformed_body"}


def other_edge(draw: Draw) -> Case:
    edge = "".join(draw.choices("abcdef'()+_,./:=?", k=draw.randrange(1, 70)))
    return WHOLE, f'multipart/form-data; boundary="{edge}"', {"malformed_body"}


def no_edge(draw: Draw) -> Case:
    said = draw.choice(["", ";", "; boundary", "; boundary=", "; charset=utf-8", "; Boundary", ';boundary=""'])
    return WHOLE, f"multipart/form-data{said}", {"malformed_body"}


def other_type(draw: Draw) -> Case:
    kinds = [
        "application/json",
        "text/plain",
        "multipart/mixed; boundary=edge",
        "multipart/form-data2",
        "",
        "image/png",
    ]
    return WHOLE, draw.choice([*kinds, None]), {"not_multipart"}


def slow_type(draw: Draw) -> Case:
    """Content types that made patterns explode (CVE-2024-24762)."""
    tail = draw.choice(['; !="', '; a="\\', ";" * 3, " ;x=y", '; filename="' + "\\" * 9]) * draw.randrange(1, 900)
    return WHOLE, "multipart/form-data" + tail[:8000], {"malformed_body", "not_multipart"}


def nameless(draw: Draw) -> Case:
    disposition = draw.choice([b"form-data", b'form-data; filename="x"', b"attachment", b"", b'form-data; nam="file"'])
    return form(part(disposition, PAGE)), FORM, {"malformed_body"}


def bad_header(draw: Draw) -> Case:
    name = bytes(draw.choices(b" \0\x01\x7f\xff(),/:;<=>?@[]{}", k=draw.randrange(1, 9)))
    return form(part(b'form-data; name="file"; filename="x"', PAGE, name + b"x: y")), FORM, {"malformed_body"}


def many_headers(draw: Draw) -> Case:
    """Headers without end in one part (CVE-2026-42561)."""
    headers = [b"X-%d: y" % number for number in range(draw.randrange(9, 400))]
    return form(part(b'form-data; name="file"; filename="x"', PAGE, *headers)), FORM, {"malformed_body"}


def long_header(draw: Draw) -> Case:
    value = b"y" * draw.randrange(9_000, 60_000)
    return form(part(b'form-data; name="file"; filename="x"', PAGE, b"X: " + value)), FORM, {"malformed_body"}


def many_parts(draw: Draw) -> Case:
    count = draw.randrange(65, 400)
    if draw.random() < 0.5:
        return form(*[field(f"f{number}", "1") for number in range(count)]), FORM, {"malformed_body"}
    return form(*[upload(b"x") for _ in range(count)]), FORM, {"malformed_body"}


def long_field(draw: Draw) -> Case:
    return form(field("query", "q" * draw.randrange(16_385, 60_000)), upload()), FORM, {"malformed_body"}


def unknown_field(draw: Draw) -> Case:
    name = "".join(draw.choices("xyz_[]. é\t", k=draw.randrange(1, 30)))
    return form(field(name, "1"), upload()), FORM, {"invalid_field"}


def repeated_field(draw: Draw) -> Case:
    name, value = draw.choice([("mode", "tiny"), ("task", "free"), ("stream", "false"), ("pages", "1")])
    return form(*[field(name, value)] * draw.randrange(2, 9), upload()), FORM, {"invalid_field"}


def bad_value(draw: Draw) -> Case:
    name = draw.choice(["mode", "task", "max_new_tokens", "pages", "temperature", "seed", "stream", "format"])
    value = draw.choice(["nan", "-1", "1e999", "null", "[]", "{{7*7}}", "<|image|>", "é" * 50, "0x10", "true1", "-"])
    # A seed may be negative.
    return form(field(name, value), upload()), FORM, {"ok" if (name, value) == ("seed", "-1") else "invalid_field"}


def many_files(draw: Draw) -> Case:
    return form(*[upload()] * draw.randrange(2, 20)), FORM, {"invalid_field"}


def no_file(draw: Draw) -> Case:
    parts = draw.choice([[], [field("mode", "tiny")], [field("file", "text")], [field("file", "")]])
    return form(*parts), FORM, {"invalid_field", "malformed_body"} if not parts else {"invalid_field"}


def misnamed_file(draw: Draw) -> Case:
    name = draw.choice([b"File", b"files", b"image", b"mode", b"file[]"])
    return form(part(b'form-data; name="' + name + b'"; filename="x"', PAGE)), FORM, {"invalid_field"}


def empty_file(draw: Draw) -> Case:
    return form(upload(b"")), FORM, {"empty_file"}


def junk_file(draw: Draw) -> Case:
    return form(upload(JUNK[: draw.randrange(1, len(JUNK))])), FORM, {"unsupported_format"}


def hostile_name(draw: Draw) -> Case:
    """Names that want to be paths (CVE-2026-24486) or to be parsed for long (CVE-2026-53537); the file is junk."""
    plain = draw.choice([b"../../etc/passwd", b"/dev/stdin", b"C:\\\\x", b"%00", b"x" * 5000, b"\xff\xfe", b"$(id)"])
    extended = b"filename*=" + draw.choice([b"utf-8''", b"x'y'", b"utf-7''", b"'" * 300]) + b"%2e%2e%2f" * 40
    disposition = b'form-data; name="file"; ' + (b'filename="' + plain + b'"' if draw.random() < 0.5 else extended)
    return form(part(disposition, JUNK)), FORM, {"unsupported_format", "malformed_body"}


def unknown_model(draw: Draw) -> Case:
    name = draw.choice(["../nano", "nano@9", "x" * 200, "%2e%2e", "a\tb", "/etc/passwd", "nano\x00"])
    return form(field("model_id", name), upload()), FORM, {"model_not_found", "invalid_field"}


def around(draw: Draw) -> Case:
    """Much before and after the form (CVE-2024-53981); the file is junk."""
    filler = draw.choice([b"\r\n", b"\n", b"-", b"--", b"\0", b"--edg"]) * draw.randrange(1, 9000)
    body = form(upload(JUNK))
    whole = filler[:30_000] + b"\r\n" + body if draw.random() < 0.5 else body + filler[:30_000]
    return whole, FORM, {"unsupported_format", "malformed_body"}


def anything(draw: Draw) -> Case:
    """Bytes changed, doubled, added or left out: what is right is not known, and some of these can be read."""
    body = bytearray(WHOLE)
    for _ in range(draw.randrange(1, 9)):
        start = draw.randrange(len(body))
        end = min(len(body), start + draw.randrange(1, 30))
        change = draw.randrange(4)
        if change == 0:
            body[start] = draw.randrange(256)
        elif change == 1:
            del body[start:end]
        elif change == 2:
            body[start:start] = body[start:end]
        else:
            body[start:start] = draw.choice([b"\r\n", b"--edge", b"--edge--", b"\0", b'"', b";", b"\r\n\r\n", b"\xff"])
    return bytes(body), FORM, {"ok", *(code for code, error in error_classes().items() if error.status < 500)}


SHAPES: list[Callable[[Draw], Case]] = [
    cut, other_edge, no_edge, other_type, slow_type, nameless, bad_header, many_headers, long_header, many_parts,
    long_field, unknown_field, repeated_field, bad_value, many_files, no_file, misnamed_file, empty_file, junk_file,
    hostile_name, unknown_model, around, *[anything] * 8,
]  # fmt: skip


def test_malformed_forms_get_the_code_of_what_is_wrong(is_long, length, figures):
    draw = random.Random(16)
    wrong: dict[str, str] = {}
    codes: Counter[str] = Counter()
    seconds = []
    with running_server(LOG_LEVEL="error") as server, contextlib.closing(RawClient(server.port)) as client:
        for number in range(length(300, 20_000)):
            shape = SHAPES[number % len(SHAPES)]
            body, content_type, expected = shape(draw)
            start_s = time.perf_counter()
            status, said, text = client.post("/ocr", body, content_type)
            seconds.append(time.perf_counter() - start_s)
            code = "ok" if status == 200 else said.get("code", f"status {status}")
            codes[code] += 1
            known = error_classes().get(code)
            if code not in expected or status >= 500 or (known is not None and known.status != status):
                wrong[f"{shape.__name__}, {number}"] = f"{status} {code} {text[:200]}"
            elif status != 200 and LEAK.search(text):
                wrong[f"{shape.__name__}, {number}"] = text
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
        assert server.metric("deepsynth_queue_depth") == server.metric("deepsynth_requests_running") == 0
    figures(bodies=len(seconds), codes=dict(codes), p99_s=percentile(seconds, 0.99), longest_s=max(seconds))
    assert wrong == {}
    assert max(seconds) < allowed_s(LONGEST_S, seconds, is_long=is_long)
