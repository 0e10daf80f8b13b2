"""Spans: none without being asked for, and then of what took time."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.training import run_small, write_checkpoint, write_words
from trainer.config import SettingsError, load_settings
from trainer.tracing import span, start_tracing, stop_tracing


@pytest.fixture
def exporter():
    spans = InMemorySpanExporter()
    start_tracing(spans)
    yield spans
    stop_tracing()


def test_nothing_is_recorded_unless_asked_for():
    assert load_settings({}).tracing is False
    with span("quiet") as current:
        current.set_attribute("number", 1)


def test_the_setting_is_true_or_false():
    assert load_settings({"DEEPSYNTH_TRAINER_TRACING": "true"}).tracing is True
    with pytest.raises(SettingsError, match="true or false"):
        load_settings({"DEEPSYNTH_TRAINER_TRACING": "yes"})


def test_a_failure_is_noted_by_its_type_alone(exporter):
    with pytest.raises(ValueError, match="secret"), span("step"):
        raise ValueError("/home/secret")
    (found,) = exporter.get_finished_spans()
    assert dict(found.attributes) == {"error.type": "ValueError"}
    assert not found.events


def test_a_run_tells_of_its_parts(exporter, tmp_path):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 8)
    run_small(tmp_path, max_steps=1, eval_steps=1)
    found = {each.name: each for each in exporter.get_finished_spans()}
    assert {"train.model", "train.data", "train.fit", "train.check"} <= found.keys()
    assert found["train.data"].attributes["deepsynth.samples"] == 6
    assert found["train.check"].parent.span_id == found["train.fit"].context.span_id
    assert not any(str(tmp_path) in str(each.attributes) for each in found.values())
