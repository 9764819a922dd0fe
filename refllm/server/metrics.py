"""The server's counters, in Prometheus's text format: GET /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from refllm.server.worker import Worker

__all__ = ["Metrics"]

SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """Counters of one server; another server in the same process has its own."""

    def __init__(self, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "refllm_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "refllm_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._registry.register(_WorkerCollector(worker))
        waiting = Gauge("refllm_waiting", "Requests queued.", registry=self._registry)
        waiting.set_function(lambda: worker.n_waiting)
        running = Gauge(
            "refllm_requests_running", "Requests being answered.", registry=self._registry
        )
        running.set_function(lambda: worker.n_running)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer. `route` must be one of the server's own: each value is a time series."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _WorkerCollector(Collector):
    """Tokens of all jobs, the prompt cache, and the models in memory."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield what has been counted until now, and what is in memory now."""
        counters, engine = self._worker.counters, self._worker.engine
        cache = engine.prompt_cache
        for name, what, count in (
            ("prompt_tokens", "Tokens of prompts and texts.", counters.n_prompt_tokens),
            ("generated_tokens", "Tokens sampled.", counters.n_generated_tokens),
            ("prompt_cache_hits", "Prompts whose beginning was cached.", cache.n_hits),
            (
                "prompt_cache_reused_tokens",
                "Tokens of prompts that were not computed again.",
                cache.n_reused_tokens,
            ),
        ):
            yield CounterMetricFamily(f"refllm_{name}", what, count)
        yield GaugeMetricFamily(
            "refllm_prompt_cache_bytes", "Keys and values of recent prompts.", cache.n_bytes
        )
        yield GaugeMetricFamily(
            "refllm_models_bytes", "Weights of loaded models.", engine.models_bytes
        )
