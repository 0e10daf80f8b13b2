from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.gateway import LORA_INFO, LORA_LABELS, NUM_RUNNING, NUM_WAITING, TABLE, GatewayMetrics


def scrape(metrics: GatewayMetrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    registry = CollectorRegistry()
    registry.register(metrics)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {family.name: [(each.labels, each.value) for each in family.samples] for family in families}


def test_names_are_those_that_the_endpoint_picker_reads_by_default() -> None:
    # Flags --total-queued-requests-metric, --total-running-requests-metric and --lora-info-metric of the extension.
    assert list(TABLE) == ["vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:lora_requests_info"]
    assert LORA_LABELS == ("max_lora", "running_lora_adapters", "waiting_lora_adapters")


def test_there_is_one_series_whatever_adapters_come_and_go() -> None:
    metrics = GatewayMetrics(clock=lambda: 1234.5)
    metrics.set_adapters(most=4, running=["a"], waiting=[])
    metrics.set_adapters(most=4, running=["b", "a", "b"], waiting=["c"])
    metrics.set_requests(waiting=3, running=2)
    found = scrape(metrics)
    labels = {"max_lora": "4", "running_lora_adapters": "a,b", "waiting_lora_adapters": "c"}
    assert found == {NUM_WAITING: [({}, 3)], NUM_RUNNING: [({}, 2)], LORA_INFO: [(labels, 1234.5)]}


def test_without_slots_nothing_is_said_of_adapters() -> None:
    assert set(scrape(GatewayMetrics())) == {NUM_WAITING, NUM_RUNNING}
