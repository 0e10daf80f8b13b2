"""Inputs for Schemathesis that random data never hits: files that can be read, in forms and as data URLs.

The environment variable `SCHEMATHESIS_HOOKS=tests.support.openapi_inputs` makes its command line load this module.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.support.chat import data_url
from tests.support.pdf import make_pdf
from tests.support.service import png

PAGE = png("A page for every case", size=(160, 80))
FILES = (PAGE, make_pdf(["one", "two"]), b"", b"%PDF-1.7\n", PAGE[:100])
URLS = (data_url(PAGE), data_url(FILES[1], "application/pdf"), "https://example.com/a.png", "data:,x")

schemathesis.openapi.format("binary", st.one_of(st.sampled_from(FILES), st.binary(max_size=200)))


@schemathesis.hook  # type: ignore[untyped-decorator]
def map_body(context: Any, body: Any) -> Any:
    """Give most URLs of a body a file; some stay as they were drawn."""
    return _with_files(body)


def _with_files(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_files(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: URLS[len(each) % len(URLS)]
        if name in {"url", "document_url", "file_data", "image_url"} and isinstance(each, str) and each.isascii()
        else _with_files(each)
        for name, each in value.items()
    }
