"""Which format an Accept header asks for, and under which name an answer is saved."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotAcceptableError
from service.ocr.formats.registry import FORMATS
from service.routes.accept import choose_format
from service.routes.disposition import content_disposition, safe_name


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ([], "json"),
        ([""], "json"),
        (["*/*"], "json"),
        (["application/json"], "json"),
        (["application/*"], "json"),
        (["text/markdown"], "markdown"),
        (["text/plain"], "text"),
        (["TEXT/Plain; charset=utf-8"], "text"),
        (["text/html"], "html"),
        (["text/vnd.hocr+html"], "hocr"),
        (["application/alto+xml"], "alto"),
        (["application/pdf"], "searchable-pdf"),
        (["text/*"], "markdown"),
        (["text/*, text/markdown;q=0"], "text"),
        (["application/*;q=0.5, application/pdf"], "searchable-pdf"),
        (["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], "html"),
        (["text/plain;q=0.3, text/markdown;q=0.31"], "markdown"),
        (["text/plain;q=0.5", "text/html;q=0.6"], "html"),
        (["image/png, */*;q=0.1"], "json"),
        (["*/*, application/json;q=0"], "markdown"),
        (["application/json;q=0.1, text/plain;q=1.000"], "text"),
        (["text/event-stream, application/json"], "json"),
        (["nonsense"], "json"),
        (["text/plain;q=2, text/html"], "html"),
        (["*/plain"], "json"),
        ([";q=1,,/,a/b/c"], "json"),
    ],
)
def test_accept_chooses_a_format(accept: list[str], name: str) -> None:
    assert choose_format(accept).name == name


@pytest.mark.parametrize(
    "accept", [["image/png"], ["application/json;q=0"], ["*/*;q=0"], ["text/event-stream"], ["application/xml"]]
)
def test_what_cannot_be_met_is_refused_with_what_there_is(accept: list[str]) -> None:
    with pytest.raises(NotAcceptableError) as refusal:
        choose_format(accept)
    assert refusal.value.public == {"available": [each.essence for each in FORMATS.values()]}


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_header_gives_a_format_or_the_refusal(accept: list[str]) -> None:
    with contextlib.suppress(NotAcceptableError):
        assert choose_format(accept).name in FORMATS


def test_names_media_types_and_extensions_are_each_used_once() -> None:
    for member in ("name", "essence", "extension"):
        values = [getattr(each, member) for each in FORMATS.values()]
        assert len(values) == len(set(values))


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("scan.png", "scan.png"),
        ("../../etc/passwd", "passwd"),
        (r"C:\scans\Bill 7.pdf", "Bill 7.pdf"),
        ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
        ("..", "document"),
        ("", "document"),
        (None, "document"),
        ("\ud800\u202efdp.exe", "fdp.exe"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
    ],
)
def test_names_of_uploads_are_made_safe(given_name: str | None, name: str) -> None:
    assert safe_name(given_name) == name


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("scan.png", 'attachment; filename="scan.txt"'),
        ("Bill (7).v2.pdf", 'attachment; filename="Bill (7).v2.txt"'),
        ("no extension", 'attachment; filename="no extension.txt"'),
        ('a"b;c.png', "attachment; filename=\"a_b_c.txt\"; filename*=UTF-8''a%22b%3Bc.txt"),
        ("Prüfung.png", "attachment; filename=\"Pr_fung.txt\"; filename*=UTF-8''Pr%C3%BCfung.txt"),
        ("100%.png", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
    ],
)
def test_answers_are_named_after_the_upload(name: str, header: str) -> None:
    assert content_disposition(name, ".txt") == header


@given(st.text(max_size=150))
def test_any_name_gives_a_header_that_can_be_sent(given_name: str) -> None:
    header = content_disposition(safe_name(given_name), ".md")
    assert header.isascii()
    assert header.isprintable()
