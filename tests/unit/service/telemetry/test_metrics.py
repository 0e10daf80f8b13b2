from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.protocol import EngineState
from service.errors import error_classes
from service.intake.formats import FileFormat
from service.telemetry import metrics
from service.telemetry.metrics import TABLE, Kind, Metrics
from shared.contract.answer import FinishReason


def test_specifications_three_keep_their_names_and_labels() -> None:
    table = {spec.name: spec for spec in TABLE}
    assert table["deepsynth_inference_latency_seconds"].kind is Kind.HISTOGRAM
    assert list(table["deepsynth_inference_latency_seconds"].labels) == []
    assert table["deepsynth_inference_total"].kind is Kind.COUNTER
    assert list(table["deepsynth_inference_total"].labels) == ["model_id", "status"]
    assert table["deepsynth_gpu_memory_bytes"].kind is Kind.GAUGE
    assert list(table["deepsynth_gpu_memory_bytes"].labels) == ["device"]


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_names_follow_the_rules(spec: metrics.MetricSpec) -> None:
    assert re.fullmatch(r"deepsynth_[a-z_]+", spec.name)
    assert spec.name.endswith("_total") is (spec.kind is Kind.COUNTER)
    assert bool(spec.buckets) is (spec.kind is Kind.HISTOGRAM)
    assert list(spec.buckets) == sorted(set(spec.buckets))
    assert spec.help.endswith(".")


def test_label_values_are_those_of_the_parts_that_set_them() -> None:
    assert tuple(FinishReason) == metrics.FINISH_REASONS
    assert tuple(EngineState) == metrics.ENGINE_STATES
    assert tuple(FileFormat) == metrics.FORMATS
    assert {cls.outcome for cls in error_classes().values()} | {"ok"} == set(metrics.OUTCOMES)


def test_closed_label_sets_start_at_zero() -> None:
    text = Metrics().render().decode()
    assert 'deepsynth_requests_total{code="ok",outcome="ok"} 0.0' in text
    assert 'deepsynth_requests_total{code="queue_full",outcome="rejected"} 0.0' in text
    assert 'deepsynth_image_rejected_total{reason="decode_crash"} 0.0' in text
    assert 'deepsynth_finished_total{finish_reason="repetition"} 0.0' in text
    assert 'deepsynth_requests_total{code="ok",outcome="rejected"}' not in text


def test_exposition_parses_and_has_no_creation_times() -> None:
    text = Metrics().render().decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"deepsynth_requests", "process_cpu_seconds", "python_gc_collections"} <= families
    assert "_created" not in text


def test_two_services_in_one_process_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.counter("pages_total").inc()
    assert second.registry.get_sample_value("deepsynth_pages_total") == 0
