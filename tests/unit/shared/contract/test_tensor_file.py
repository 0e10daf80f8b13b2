"""The header of safetensors, read by hand: as the library reads it, and never worse on files that are none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from shared.contract.peft_config import matches_target
from shared.contract.refusals import AdapterRefusedError
from shared.contract.tensor_file import CHUNK_BYTES, is_all_zero, read_header
from tests.support.adapters import lora_tensors, safetensors_bytes

GOOD = safetensors_bytes(lora_tensors())


def test_the_header_is_read_as_the_library_reads_it():
    tensors = lora_tensors()
    data = save(tensors, {"format": "pt"})
    entries = read_header(io.BytesIO(data), 10)
    assert {entry.name: entry.shape for entry in entries} == {name: value.shape for name, value in tensors.items()}
    for entry in entries:
        values = np.frombuffer(data[entry.start : entry.start + entry.size_bytes], "<f4").reshape(entry.shape)
        assert np.array_equal(values, tensors[entry.name])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(changes):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    try:
        entries = read_header(io.BytesIO(bytes(data)), 10)
    except AdapterRefusedError:
        return
    assert {entry.name for entry in entries} == set(load(bytes(data)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_every_beginning_of_a_file_is_refused(length):
    with pytest.raises(AdapterRefusedError):
        read_header(io.BytesIO(GOOD[:length]), 10)


def test_values_are_looked_at_to_the_last_piece():
    values = np.zeros((1, CHUNK_BYTES // 4 + 7), "<f4")
    (entry,) = read_header(io.BytesIO(safetensors_bytes({"a": values})), 1)
    assert is_all_zero(io.BytesIO(safetensors_bytes({"a": values})), entry)
    values[0, -1] = 1e-45  # the smallest there is
    assert not is_all_zero(io.BytesIO(safetensors_bytes({"a": values})), entry)
    values[0, -1] = np.nan
    with pytest.raises(AdapterRefusedError, match="not_finite"):
        is_all_zero(io.BytesIO(safetensors_bytes({"a": values})), entry)


def test_a_file_that_shrinks_between_header_and_values_is_refused():
    (entry,) = read_header(io.BytesIO(safetensors_bytes({"a": np.zeros((2, 2))})), 1)
    with pytest.raises(AdapterRefusedError, match="ends early"):
        is_all_zero(io.BytesIO(b"short"), entry)


@pytest.mark.parametrize(
    ("module", "targets", "target"),
    [
        ("model.layers.0.self_attn.q_proj", ("q_proj",), "q_proj"),
        ("model.layers.0.self_attn.q_proj", ("self_attn.q_proj",), "self_attn.q_proj"),
        ("model.layers.0.self_attn.q_proj", ("model.layers.0.self_attn.q_proj",), "model.layers.0.self_attn.q_proj"),
        ("model.layers.0.self_attn.q_proj", ("proj", "n.q_proj", "v_proj"), None),
        ("q_proj", ("q_proj",), "q_proj"),
    ],
)
def test_targets_match_as_pefts_lists_do(module, targets, target):
    assert matches_target(module, targets) == target
