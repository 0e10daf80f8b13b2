from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from service.jobs.origins import SECRET_PREFIX, origin_of, parse_origins, parse_secret
from service.jobs.webhook import sign

ROOT = Path(__file__).resolve().parents[4]


def test_signature_is_that_of_the_standards_example() -> None:
    body = b'{"event_type":"ping","data":{"success":true}}'
    secret = parse_secret(SECRET_PREFIX + base64.b64encode(b"0" * 24).decode())
    assert secret == b"0" * 24
    example = base64.b64decode("plJ3nmyCDGBKInavdOK15jsl")
    headers = sign(example, "msg_loFOjxBNrRLzqYUf", 1731705121, body)
    assert headers == {
        "webhook-id": "msg_loFOjxBNrRLzqYUf",
        "webhook-timestamp": "1731705121",
        "webhook-signature": "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
    }


def test_signature_in_the_documentation_is_that_of_its_message() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = re.search(r"    POST /jobs HTTP/1.1\n(.*?)\n\n(.*?)\n\n.*?`(whsec_.*?)`", page, re.DOTALL)
    assert found is not None
    headers = dict(line.strip().split(": ") for line in found[1].splitlines())
    body = " ".join(line.strip() for line in found[2].splitlines()).encode()
    assert headers == sign(parse_secret(found[3]), headers["webhook-id"], int(headers["webhook-timestamp"]), body)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Hooks.Example.ORG", "https://hooks.example.org:443"),
        ("https://hooks.example.org:443/a?b=c", "https://hooks.example.org:443"),
        ("http://10.0.0.5:8080/", "http://10.0.0.5:8080"),
        ("http://[::1]:1/", "http://::1:1"),
        ("https://bücher.example/", "https://xn--bcher-kva.example:443"),
        ("ftp://hooks.example.org/", None),
        ("https://user:password@hooks.example.org/", None),  # pragma: allowlist secret
        ("https:///path", None),
        ("hooks.example.org", None),
        ("", None),
    ],
)
def test_origin(url: str, origin: str | None) -> None:
    assert origin_of(url) == origin


def test_origins_are_listed_without_paths() -> None:
    assert parse_origins("https://a.example, http://b.example:81/") == {
        "https://a.example:443",
        "http://b.example:81",
    }
    for text in ("https://a.example/hook", "a.example", "https://a.example,", "https://*.example?x"):
        with pytest.raises(ValueError, match="is no origin"):
            parse_origins(text)


@pytest.mark.parametrize("text", ["short", "whsec_c2hvcnQ=", "whsec_!!", base64.b64encode(b"0" * 32).decode()])
def test_other_secrets_are_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="openssl rand") as refused:
        parse_secret(text)
    assert text not in str(refused.value)
