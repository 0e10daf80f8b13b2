"""Every option of `POST /ocr` is a flag of the commands and reaches the reader, or is listed here with the reason."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from typing import Any

import pytest

from service.cli import bulk, local_reader, ocr
from service.cli.local_reader import LocalReader
from service.cli.read_flags import read_options
from service.cli.reading import ReadOptions
from service.cli.remote_reader import _form
from service.routes.chat import ChatRequest
from service.routes.form import OcrFields, parse_fields
from service.routes.jobs import JobFields
from service.routes.mistral import MistralRequest
from tests.support.service import make_settings

_OF_ONE_DOCUMENT = "is not the same for many documents"
_NO_COLUMN = "has no column"
_OTHER_NAME = "has another name"
NOT_A_FLAG = {
    "ocr": {"stream": "the text of a file is printed when it is read"},
    "bulk": {
        "stream": "rows are written when a document is read",
        "format": "the output is Parquet",
        "query": _OF_ONE_DOCUMENT,
        "pages": _OF_ONE_DOCUMENT,
        "confidence": _NO_COLUMN,
        "review_threshold": _NO_COLUMN,
        "figures": _NO_COLUMN,
        "join_pages": "is about the text of a document, and rows are of pages",
    },
}
NOT_A_MEMBER: dict[type[Any], dict[str, str]] = {
    JobFields: {},
    ChatRequest: {"model_id": _OTHER_NAME, "max_new_tokens": _OTHER_NAME, "format": "the answer is a chat's"},
    MistralRequest: {
        "model_id": _OTHER_NAME,
        "confidence": _OTHER_NAME,
        "figures": _OTHER_NAME,
        "omit": "headers and footers have members of their own",
        # The client sends no members that Mistral's API does not have.
        **dict.fromkeys(
            ("task", "mode", "query", "max_new_tokens", "temperature", "seed", "blank_pages", "min_confidence"), ""
        ),
        **dict.fromkeys(("review_threshold", "min_coverage", "orientation", "layout", "join_pages"), ""),
        **dict.fromkeys(("pages_together", "format", "stream"), ""),
    },
}
OTHER_VALUES = {
    "task": "markdown", "query": "a name", "mode": "tiny", "model_id": "invoices", "pages": "2", "max_new_tokens": "9",
    "temperature": "0.0", "seed": "0", "confidence": "word", "review_threshold": "0.5", "blank_pages": "read",
    "min_confidence": "0.0", "min_coverage": "0.25", "orientation": "as-is", "layout": "page", "table_format": "html",
    "omit": "header", "figures": None, "join_pages": None, "pages_together": None,
}  # fmt: skip
"""A value of each flag that is not its default; None where it takes none."""


def parser_of(command: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser


def options() -> ReadOptions:
    given = [
        word
        for name, value in OTHER_VALUES.items()
        for word in (f"--{name.replace('_', '-')}", *([] if value is None else [value]))
    ]
    return read_options(parser_of(ocr).parse_args(["page.png", *given]))


@pytest.mark.parametrize("command", [ocr, bulk])
def test_every_field_is_a_flag_or_has_a_reason_not_to_be(command: Any) -> None:
    flags = {action.dest for action in parser_of(command)._actions}
    name = command.__name__.rpartition(".")[2]
    assert set(OcrFields.model_fields) - flags == set(NOT_A_FLAG[name])


@pytest.mark.parametrize("kind", NOT_A_MEMBER)
def test_every_field_is_a_member_of_other_requests_or_has_a_reason_not_to_be(kind: type[Any]) -> None:
    assert set(OcrFields.model_fields) - set(kind.model_fields) == set(NOT_A_MEMBER[kind])


def test_every_flag_reaches_a_service() -> None:
    assert set(OTHER_VALUES) == {each.name for each in fields(ReadOptions)}
    asked = parse_fields(_form(options(), None).items(), OcrFields)
    assert {name: getattr(asked, name) for name in OTHER_VALUES} == asdict(options())
    assert all(value != getattr(ReadOptions(), name) for name, value in asdict(options()).items())


def test_every_flag_reaches_the_engine_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(local_reader, "parse_request", lambda **given: taken.update(given))
    monkeypatch.setattr(local_reader, "check_arrangement", lambda *_: None)
    monkeypatch.setattr(local_reader, "ServedModels", lambda _: None)

    class Anything:
        def __getattr__(self, _: str) -> Any:
            return Anything()

    nothing: Any = Anything()
    reader = LocalReader(make_settings(), nothing, nothing, nothing, nothing, 1, options(), None, b"")
    reader._request(b"")
    wanted = reader._arrangement(nothing)
    taken |= {name: getattr(wanted, name) for name in ("table_format", "figures", "join_pages")}
    assert {name: taken[name] for name in OTHER_VALUES if name != "omit"} == {
        name: value for name, value in asdict(options()).items() if name != "omit"
    }
    assert wanted.omit == frozenset({"header"})
