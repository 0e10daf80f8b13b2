"""The manifest's format: what reads back, what is refused, and what a newer minor format may add."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contract.manifest import (
    FORMAT,
    MAX_MANIFEST_BYTES,
    AdapterManifest,
    CodeVersion,
    FileRecord,
    LoraRecord,
    parse_manifest,
    to_json,
)
from shared.contract.refusals import (
    ADVICE,
    FAULTS,
    AdapterRefusedError,
    Fault,
    Reason,
    faults_table,
    reasons_table,
)
from tests.support.adapters import BASE, evaluation

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "adapters.md"


def manifest(**changes) -> AdapterManifest:
    return AdapterManifest(**({
        "name": "invoices",
        "version": 3,
        "publication_id": "0" * 32,
        "created": datetime(2026, 11, 22, 12, tzinfo=UTC),
        "activate": True,
        "base": BASE,
        "lora": LoraRecord(rank=16, alpha=32.0, dtype="BF16", targets=("q_proj",), num_tensors=2),
        "files": {"adapter_model.safetensors": FileRecord(sha256="0" * 64, size_bytes=1)},
        "evaluation": evaluation(),
        "code": CodeVersion(program="trainer", version="1", commit="unknown"),
    } | changes))  # fmt: skip


def changed(**changes) -> bytes:
    return json.dumps(json.loads(to_json(manifest())) | changes).encode()


def reason_of(data: bytes) -> Reason:
    with pytest.raises(AdapterRefusedError) as caught:
        parse_manifest(data)
    return caught.value.reason


def test_a_manifest_reads_back():
    assert parse_manifest(to_json(manifest())) == manifest()
    assert parse_manifest(to_json(manifest(forced="a trial", evaluation=None))).forced == "a trial"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Invoices"}, {"name": "../x"}, {"version": 0}, {"version": "3"}, {"version": 3.5}, {"version": True},
        {"created": "yesterday"}, {"created": "2026-11-22T12:00:00"}, {"activate": 1}, {"base": None}, {"files": {}},
        {"base": {"model_id": "nano", "revision": "main"}}, {"publication_id": "x"}, {"forced": ""},
        {"forced": "x" * 501}, {"surprise": 1}, {"code": {}}, {"training_data": {"sha256": "x", "samples": 1}},
    ],
)  # fmt: skip
def test_a_field_out_of_its_range_is_named(changes):
    data = changed(**changes)
    assert reason_of(data) is Reason.MANIFEST_INVALID
    with pytest.raises(AdapterRefusedError, match=next(iter(changes))):
        parse_manifest(data)


def test_values_do_not_get_into_messages():
    with pytest.raises(AdapterRefusedError) as caught:
        parse_manifest(changed(forced="secret" * 200))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("field", list(AdapterManifest.model_fields))
def test_every_field_without_a_default_is_needed(field):
    values = json.loads(to_json(manifest()))
    del values[field]
    data = json.dumps(values).encode()
    if field == "format":
        assert reason_of(data) is Reason.MANIFEST_FORMAT
    elif AdapterManifest.model_fields[field].is_required():
        assert reason_of(data) is Reason.MANIFEST_INVALID
    else:
        parse_manifest(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.MANIFEST_NOT_JSON),
        (b"[]", Reason.MANIFEST_NOT_JSON),
        (b"\xff\xfe{}", Reason.MANIFEST_NOT_JSON),
        (b'{"format": "1.0", "format": "1.0"}', Reason.MANIFEST_NOT_JSON),
        (changed(version=float("nan")), Reason.MANIFEST_NOT_JSON),
        (b'{"a":' * 20_000, Reason.MANIFEST_NOT_JSON),
        (b" " * (MAX_MANIFEST_BYTES + 1), Reason.MANIFEST_TOO_LARGE),
        (b"{}", Reason.MANIFEST_FORMAT),
        (changed(format=1), Reason.MANIFEST_FORMAT),
        (changed(format="1"), Reason.MANIFEST_FORMAT),
        (changed(format="2.0"), Reason.MANIFEST_FORMAT),
        (changed(format="0.9"), Reason.MANIFEST_FORMAT),
    ],
)
def test_what_is_no_manifest_at_all(data, reason):
    assert reason_of(data) is reason


def test_a_newer_minor_format_is_read_without_what_it_added():
    values = json.loads(changed(format="1.7", signature="abc"))
    values["base"]["quantisation"] = "int4"
    read = parse_manifest(json.dumps(values).encode())
    assert (read.name, read.format) == ("invoices", "1.7")
    assert reason_of(changed(format="1.7", version=None)) is Reason.MANIFEST_INVALID


def test_tiers_of_base_and_adapter_are_the_same():
    values = json.loads(to_json(manifest()))
    values["evaluation"]["adapter"]["tiers"] = {"page": values["evaluation"]["adapter"]["tiers"]["line"]}
    assert reason_of(json.dumps(values).encode()) is Reason.MANIFEST_INVALID


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_the_same_way(data):
    assert reason_of(data) in {Reason.MANIFEST_NOT_JSON, Reason.MANIFEST_FORMAT}


@given(st.data())
def test_any_change_of_one_byte_is_read_or_refused(data):
    text = bytearray(to_json(manifest()))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(AdapterRefusedError):
        parse_manifest(bytes(text))


def test_every_code_has_its_advice_and_stands_in_the_document():
    assert set(ADVICE) == set(Reason)
    assert set(FAULTS) == set(Fault)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert reasons_table() in text
    assert faults_table() in text
    assert len({str(code) for code in (*Reason, *Fault)}) == len(Reason) + len(Fault)


def test_the_document_shows_a_manifest_that_is_read():
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert parse_manifest(blocks[0].encode()).format == FORMAT


def test_the_document_names_every_field():
    text = DOCUMENT.read_text(encoding="utf-8")
    missing = [name for name in AdapterManifest.model_fields if f"`{name}" not in text]
    assert missing == []
