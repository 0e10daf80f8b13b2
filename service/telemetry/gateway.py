"""Metrics by which Kubernetes' Gateway API Inference Extension chooses a server, with the names that it looks for.

The extension's model server protocol (kubernetes-sigs/gateway-api-inference-extension,
docs/proposals/003-model-server-protocol) takes names of adapters from labels, which change with every load. So this is
the one metric whose labels are no closed set: it has a single series at any time, and Prometheus should drop it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

NUM_WAITING = "vllm:num_requests_waiting"
NUM_RUNNING = "vllm:num_requests_running"
LORA_INFO = "vllm:lora_requests_info"
LORA_LABELS = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
TABLE = {
    NUM_WAITING: "Requests without a page in work yet; as deepsynth_queue_depth.",
    NUM_RUNNING: "Requests with a page in work; as deepsynth_requests_running.",
    LORA_INFO: "When the labels were updated, in seconds since 1970; only where adapters are served.",
}
"""Every metric of this module with its meaning; all are gauges."""


class GatewayMetrics(Collector):
    """What a scrape reads, as it was set last."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._num_waiting = self._num_running = 0
        self._max_adapters = 0
        self._running: tuple[str, ...] = ()
        self._waiting: tuple[str, ...] = ()
        self._updated_s = 0.0

    def set_requests(self, *, waiting: int, running: int) -> None:
        """Set the numbers of requests."""
        self._num_waiting, self._num_running = waiting, running

    def set_adapters(self, *, most: int, running: Collection[str], waiting: Collection[str]) -> None:
        """Set the adapters.

        Args:
            most: Slots for adapters.
            running: Names of those that are loaded.
            waiting: Names of those that requests wait for.
        """
        self._max_adapters = most
        self._running, self._waiting = tuple(sorted(set(running))), tuple(sorted(set(waiting)))
        self._updated_s = self._clock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families, as prometheus_client asks for them."""
        yield GaugeMetricFamily(NUM_WAITING, TABLE[NUM_WAITING], value=self._num_waiting)
        yield GaugeMetricFamily(NUM_RUNNING, TABLE[NUM_RUNNING], value=self._num_running)
        if self._max_adapters:
            info = GaugeMetricFamily(LORA_INFO, TABLE[LORA_INFO], labels=LORA_LABELS)
            labels = (str(self._max_adapters), ",".join(self._running), ",".join(self._waiting))
            info.add_metric(labels, self._updated_s)
            yield info
