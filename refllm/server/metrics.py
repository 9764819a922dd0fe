"""What the server counts, for Prometheus: GET /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from refllm.engine import LocalEngine
from refllm.server.jobs import Tally
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
        self._registry.register(_Tokens(worker.tally))
        self._registry.register(_Memory(worker.engine))
        waiting = Gauge("refllm_waiting", "Requests not begun.", registry=self._registry)
        waiting.set_function(lambda: worker.n_waiting)
        going = Gauge("refllm_going", "Requests being answered.", registry=self._registry)
        going.set_function(lambda: worker.n_going)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """A request's end. `route` is one of the server's own, so that there are not too many."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _Tokens(Collector):
    """Tokens as the worker counts them, whatever becomes of the answers that they are for."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What has been counted until now."""
        n_prompt, n_generated = self._tally.n_prompt_tokens, self._tally.n_generated_tokens
        yield CounterMetricFamily("refllm_prompt_tokens", "Tokens of prompts and texts.", n_prompt)
        yield CounterMetricFamily("refllm_generated_tokens", "Tokens drawn.", n_generated)


class _Memory(Collector):
    """What the engine keeps between requests, and what the prompt cache has saved."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What has been counted until now, and is there now."""
        kept = self._engine.prompt_cache
        yield CounterMetricFamily(
            "refllm_prompt_cache_hits", "Prompts whose beginning was known.", kept.n_hits
        )
        yield CounterMetricFamily(
            "refllm_prompt_cache_reused_tokens",
            "Tokens of prompts that were not computed again.",
            kept.n_reused_tokens,
        )
        yield GaugeMetricFamily(
            "refllm_prompt_cache_bytes", "Keys and values of recent prompts.", kept.n_bytes
        )
        yield GaugeMetricFamily(
            "refllm_models_bytes", "Weights of loaded models.", self._engine.models_bytes
        )
