"""Spans: none without being asked for, and then of what took time."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import trainer
from tests.support.evaluation import TableReader
from tests.support.training import run_small, write_checkpoint, write_words
from trainer import cli
from trainer.config import SettingsError, load_settings
from trainer.evaluation.run import read_all
from trainer.tracing import span, start_tracing, stop_tracing

COMMANDS = {
    "prepare",
    "train",
    "evaluate",
    "calibrate",
    "publish",
    "push",
    "report",
    "benchmark",
    "smoke",
    "nano",
    "orientation",
    "activate",
    "export",
    "list",
    "merge",
    "reinforce",
    "sweep",
    "withdraw",
}
"""Each is an operation with a span of its own."""
STEPS = {
    "train.model": "the base model is loaded",
    "train.data": "samples are read",
    "train.fit": "the adapter is trained",
    "train.check": "held-out pages are read",
    "evaluate.read": "a reader reads the pages of an evaluation",
    "publish.write": "a version is written to the volume",
    "push.upload": "a version is uploaded to the Hub",
}
"""Operations within commands that take long."""


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


def commands() -> set[str]:
    (choices,) = [
        action.choices for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    return set(choices)


def test_every_command_is_an_operation(exporter, monkeypatch):
    assert commands() == COMMANDS
    for command in COMMANDS:
        parsed = argparse.Namespace(command=command, run=lambda *_: "")
        monkeypatch.setattr(cli, "build_parser", lambda parsed=parsed: argparse.Namespace(parse_args=lambda _: parsed))
        assert cli.main([]) == 0
    assert {each.name for each in exporter.get_finished_spans()} == {f"trainer.{command}" for command in COMMANDS}


def test_every_span_in_the_source_is_on_the_list():
    root = Path(trainer.__file__).parent
    named = {name for path in root.rglob("*.py") for name in re.findall(r'\bspan\("([^"]+)"', path.read_text("utf-8"))}
    assert named == STEPS.keys()


def test_pages_of_an_evaluation_are_counted_and_not_named(exporter):
    assert read_all(TableReader("/home/secret", {}), [], io.StringIO()) == []
    (found,) = exporter.get_finished_spans()
    assert (found.name, dict(found.attributes)) == ("evaluate.read", {"deepsynth.samples": 0})
