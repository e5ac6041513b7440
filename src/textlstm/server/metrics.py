"""What Prometheus may know: numbers by model, route and status, and nothing that users wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from textlstm.server.hub import Hub

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counts requests, and asks the schedulers when the page is read.

    Args:
        hub: the server's models.
    """

    def __init__(self, hub: Hub) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "textlstm_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "textlstm_request_seconds", "Seconds from request to end of answer.", ["route"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "textlstm_time_to_first_token_seconds", "Seconds from request to first token.", ["model"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_Schedulers(hub))
        ProcessCollector(registry=self._registry)

    def observe(self, route: str, status: int, seconds: float, line: dict[str, Any]) -> None:
        """Notes one request; `line` is what its log line says."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if line.get("first_token_ms") is not None:
            self._first.labels(line["model"]).observe(line["first_token_ms"] / 1000)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Schedulers(Collector):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "textlstm_texts_running": ("Rows of the batch in use.", "running"),
            "textlstm_requests_waiting": ("Requests that wait for room.", "waiting"),
        }
        counters = {
            "textlstm_prompt_tokens": ("Tokens read.", "prompt_tokens"),
            "textlstm_generation_tokens": ("Tokens written.", "written_tokens"),
            "textlstm_rounds": ("Rounds of the scheduler.", "rounds"),
            "textlstm_cancelled_requests": ("Prompts whose reader left.", "cancelled"),
            "textlstm_refused_requests": ("Requests refused because too many waited.", "refused"),
        }
        for name, (help, attribute) in gauges.items():
            gauge = GaugeMetricFamily(name, help, labels=["model"])
            for served in self._hub.served.values():
                gauge.add_metric([served.name], sum(getattr(s, attribute) for s in served.schedulers))
            yield gauge
        for name, (help, attribute) in counters.items():
            counter = CounterMetricFamily(name, help, labels=["model"])
            for served in self._hub.served.values():
                counter.add_metric([served.name], sum(getattr(s.counts, attribute) for s in served.schedulers))
            yield counter
