from __future__ import annotations

import base64
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DeepSynthError, InvalidDataUrlError, RemoteUrlError, UploadTooLargeError
from service.routes.data_url import FileBudget

MIB = 1024 * 1024


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decode(url: str, limit_bytes: int = MIB, *, bare: bool = False) -> bytes:
    return FileBudget(limit_bytes).decode(url, "place", may_be_bare=bare)


@given(st.binary(max_size=200), st.sampled_from(["image/png", "application/pdf", "", "image/png;name=a.png"]))
def test_what_was_encoded_is_decoded(data: bytes, kind: str):
    assert decode(f"data:{kind};base64,{encoded(data)}") == data


@pytest.mark.parametrize("size", [49_149, 49_150, 49_151, 49_152, 49_153, 98_304, 98_305])
def test_pieces_join_wherever_they_are_cut(size: int):
    data = bytes(index % 251 for index in range(size))
    assert decode(f"DATA:image/PNG;Base64,{encoded(data)}") == data


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "HTTPS://example.com/x.pdf",
        "file:///etc/passwd",
        "ftp://host/x",
        "s3://bucket/x",
        "gopher:x",
    ],
)
def test_other_urls_are_not_fetched(url: str):
    with pytest.raises(RemoteUrlError) as caught:
        decode(url, bare=True)
    assert caught.value.public == {"field": "place"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,QQ=",
        "data:image/png;base64,QQ",
        "data:image/png;base64,QQ==QQ==",
        "data:image/png;base64,Q Q=",
        "data:image/png;base64,QU\tJD",
        "data:image/png;base64,QU\nJ",
        "data:image/png;base64,QQ==\nQQ==",
        "data:image/png\n;base64,QUJD",
        "data:image/png;base64,-_-_",
        "data:image/png;base64,QUJD%3D",
        "data:image/png;base64,QUÄD",
        "data:image/png;base64,=QUJ",
        " data:image/png;base64,QUJD",
        "data:image/png;charset=utf-8,QUJD",
        "QUJD",
    ],
)
def test_what_is_no_data_url_is_refused(url: str):
    with pytest.raises(InvalidDataUrlError) as caught:
        decode(url)
    is_head_right = re.match(r"data:image/png;base64,", url) is not None
    assert caught.value.public["expected"].startswith("base64" if is_head_right else "data:")


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [0, 1, 57, 58, 59, 48_000, 49_151, 49_152, 98_305])
def test_base64_may_have_line_breaks_as_programs_write_them(size: int, line_break: str):
    data = bytes(index % 251 for index in range(size))
    wrapped = base64.encodebytes(data).decode().replace("\n", line_break)
    assert decode(f"data:image/png;base64,{wrapped}", len(data)) == decode(wrapped, len(data), bare=True) == data


def test_padding_inside_a_long_text_is_refused():
    piece = encoded(b"x" * 49_151)
    with pytest.raises(InvalidDataUrlError):
        decode(f"data:;base64,{piece}{piece}")


def test_bare_base64_is_taken_where_it_is_allowed():
    assert decode(encoded(b"%PDF-1.7"), bare=True) == b"%PDF-1.7"


def test_files_share_the_limit():
    budget = FileBudget(10)
    assert budget.decode(f"data:;base64,{encoded(b'1234567')}", "one") == b"1234567"
    with pytest.raises(UploadTooLargeError) as caught:
        budget.decode(f"data:;base64,{encoded(b'1234')}", "two")
    assert caught.value.public == {"limit_bytes": 10}
    assert budget.decode(f"data:;base64,{encoded(b'123')}", "three") == b"123"


def test_no_second_copy_is_made_of_a_large_file():
    url = f"data:application/pdf;base64,{encoded(bytes(8 * MIB))}"
    tracemalloc.start()
    try:
        data = decode(url, 8 * MIB)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == 8 * MIB
    assert peak_bytes < 1.3 * len(data)


def test_a_file_that_is_too_large_is_not_decoded():
    url = f"data:;base64,{encoded(bytes(2 * MIB))}"
    tracemalloc.start()
    try:
        with pytest.raises(UploadTooLargeError):
            decode(url, MIB)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < MIB // 8


@given(st.text(max_size=60) | st.from_regex(r"data:[a-z/;=,]{0,30}base64,[A-Za-z0-9+/=\n]{0,40}", fullmatch=True))
def test_any_text_is_a_file_or_an_error_of_ours(text: str):
    try:
        decode(text, bare=True)
    except DeepSynthError:
        return
    assert len(text.replace("\n", "").replace("\r", "")) % 4 == 0 or "," in text
