from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ClientError, DeepSynthError, InvalidFieldError, MalformedJsonError
from service.routes.chat import ChatRequest, check_parameters, choose_task, decode_files
from service.routes.data_url import FileBudget
from service.routes.json_body import MAX_VALUES, parse_json
from service.routes.mistral import MistralRequest, pages_from_zero
from service.routes.mistral import check_parameters as check_mistral
from service.schemas import FeedbackRequest

SECRET = "swordfish"  # pragma: allowlist secret

HOSTILE = {
    "nothing": b"",
    "half": b'{"messages": [',
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "half a character": b'{"model": "\\ud800"}',
    "nul": b"\0" * 100,
    "deep lists": b"[" * 9_000,
    "deep objects": b'{"a":' * 9_000,
    "deep and closed": b'{"messages":' + b"[" * 4_000 + b"]" * 4_000 + b"}",
    "many lists": b"[" + b"[]," * 500_000 + b"0]",
    "many numbers": b"[" + b"0," * 500_000 + b"0]",
    "trailing": b"{}{}",
    "comment": b"{} // no",
    "long number": b'{"max_tokens": 1' + b"0" * 5_000 + b"}",
}


@pytest.mark.parametrize("model", [ChatRequest, MistralRequest])
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_json_within_the_limits_is_malformed(body: bytes, model: Any):
    with pytest.raises(MalformedJsonError):
        parse_json(body, model)


def chat_of(body: bytes) -> None:
    check_parameters(parse_json(body, ChatRequest))


def document_of(body: bytes) -> None:
    parse_json(body, MistralRequest)


@pytest.mark.parametrize(
    ("check", "valid"),
    [
        (chat_of, {"model": "x", "messages": [{"role": "user", "content": "x"}]}),
        (document_of, {"model": "x", "document": {"type": "document_url", "document_url": "x"}}),
    ],
)
def test_a_very_long_name_of_a_field_costs_little_memory(check: Callable[[bytes], None], valid: dict[str, Any]):
    body = json.dumps({**valid, "k" * 4_000_000: 1}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFieldError) as caught:
            check(body)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
    finally:
        tracemalloc.stop()
    assert caught.value.public["field"] == ""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model": "swordfish",\n "messages": [}', "expected value at line 2 column 15"),
        (
            b'{"model": "swordfish\n"}',
            "control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0",
        ),
        (b'{"model": swordfish}', "expected value at line 1 column 11"),
        (b"[" + b"0," * MAX_VALUES + b"0]", f"more than {MAX_VALUES} values"),
        (HOSTILE["deep and closed"], "recursion limit exceeded at line 1 column 213"),
    ],
)
def test_the_error_says_where_and_quotes_nothing(body: bytes, reason: str):
    with pytest.raises(MalformedJsonError) as caught:
        parse_json(body, ChatRequest)
    assert caught.value.public == {"reason": reason}
    assert SECRET not in reason


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"1e999", b"NaN", b"true", b"{}", b'{"model": null}'])
def test_json_of_another_kind_is_not_valid(body: bytes):
    with pytest.raises(DeepSynthError) as caught:
        parse_json(body, ChatRequest)
    assert caught.value.status in (400, 422)


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": "x"}], **changes}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": SECRET, "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": SECRET}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.image_url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": None}}]}]},
            "messages.0.content.0.image_url.url",
        ),
        ({"temperature": SECRET}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 10**400}, "temperature"),
        ({"seed": 2**64}, "seed"),
        ({"task": [SECRET]}, "task"),
        ({"stream_options": SECRET}, "stream_options"),
    ],
)
def test_field_that_is_not_valid_is_named_and_not_quoted(changes: dict[str, Any], field: str):
    with pytest.raises(InvalidFieldError) as caught:
        parse_json(json.dumps(request(**changes)).encode(), ChatRequest)
    assert caught.value.public["field"] == field
    assert SECRET not in str(caught.value.public)


def test_unknown_fields_are_named_if_their_name_is_plain() -> None:
    document = {"type": "document_url", "document_url": "data:"}
    for name, field in (("page", "page"), ("odd name <b>", "")):
        with pytest.raises(InvalidFieldError) as caught:
            check_parameters(parse_json(json.dumps(request(**{name: SECRET})).encode(), ChatRequest))
        assert caught.value.public["field"] == field
        assert "messages" in caught.value.public["expected"]
        with pytest.raises(InvalidFieldError) as caught:
            parse_json(json.dumps({"document": document, name: SECRET}).encode(), MistralRequest)
        assert caught.value.public["field"] == field
        assert caught.value.public.get("did_you_mean") == ("pages" if field else None)
        assert SECRET not in str(caught.value.public)


def test_a_request_of_many_parts_is_within_the_limit():
    parts = [{"type": "text", "text": "free"}] * (MAX_VALUES // 4)
    body = json.dumps(request(messages=[{"role": "user", "content": parts}])).encode()
    assert len(parse_json(body, ChatRequest).messages[0].content) == MAX_VALUES // 4


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
parts = values | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "file", "input_audio"])},
    optional={"text": values, "image_url": values, "file": values},
)
messages = values | st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system", "developer", "assistant", "tool"]),
            "content": values | st.lists(parts),
        }
    )
)


@given(
    st.fixed_dictionaries(
        {"model": values | st.just("fake"), "messages": messages},
        optional=dict.fromkeys(("n", "stop", "tools", "stream", "query", "task", "pages", "temperature"), values),
    )
)
def test_any_chat_is_a_request_or_an_error_of_ours(body: dict[str, Any]):
    with contextlib.suppress(ClientError):
        chat = parse_json(json.dumps(body).encode(), ChatRequest)
        check_parameters(chat)
        choose_task(chat)
        decode_files(chat, FileBudget(1000), 4)


@given(
    st.fixed_dictionaries(
        {"document": values | st.fixed_dictionaries({"type": values, "document_url": values})},
        optional=dict.fromkeys(("model", "pages", "image_limit", "table_format", "include_blocks"), values),
    )
)
def test_any_request_of_mistrals_is_one_or_an_error_of_ours(body: dict[str, Any]):
    with contextlib.suppress(ClientError):
        asked = parse_json(json.dumps(body).encode(), MistralRequest)
        check_mistral(asked)
        pages_from_zero(asked.pages)


CHAT = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
PAGE = {"document": {"type": "image_url", "image_url": "data:,x"}}


@pytest.mark.parametrize(
    ("model", "body", "changes"),
    [
        (ChatRequest, CHAT, {"max_tokens": True}),
        (ChatRequest, CHAT, {"max_tokens": "5"}),
        (ChatRequest, CHAT, {"temperature": True}),
        (ChatRequest, CHAT, {"min_confidence": "0.5"}),
        (ChatRequest, CHAT, {"stream": 1}),
        (ChatRequest, CHAT, {"stream": "true"}),
        (ChatRequest, CHAT, {"figures": "no"}),
        (MistralRequest, PAGE, {"image_limit": True}),
        (MistralRequest, PAGE, {"pages": [True]}),
        (MistralRequest, PAGE, {"include_blocks": 1}),
        (FeedbackRequest, {"id": "ocr-1", "text": "x"}, {"page": True}),
        (FeedbackRequest, {"id": "ocr-1", "text": "x"}, {"page": "1"}),
    ],
)
def test_booleans_numbers_and_text_are_not_taken_for_each_other(
    model: Any, body: dict[str, Any], changes: dict[str, Any]
):
    parse_json(json.dumps(body).encode(), model)
    with pytest.raises(InvalidFieldError) as caught:
        parse_json(json.dumps({**body, **changes}).encode(), model)
    (name,) = changes
    assert str(caught.value.public["field"]).startswith(name)


def test_values_of_closed_lists_are_text_and_whole_numbers_are_numbers():
    chat = parse_json(
        json.dumps({**CHAT, "temperature": 0, "confidence": "word", "table_format": "html"}).encode(), ChatRequest
    )
    assert (chat.temperature, chat.confidence, chat.table_format) == (0.0, "word", "html")
