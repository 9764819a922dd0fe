"""What the server counts, for Prometheus: GET /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from refllm.spin.server.worker import Done, Worker

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
        self._prompt_tokens = Counter(
            "refllm_prompt_tokens", "Tokens read.", registry=self._registry
        )
        self._generated_tokens = Counter(
            "refllm_generated_tokens", "Tokens drawn.", registry=self._registry
        )
        waiting = Gauge("refllm_waiting", "Requests not begun.", registry=self._registry)
        waiting.set_function(lambda: worker.n_waiting)
        going = Gauge("refllm_going", "Requests being answered.", registry=self._registry)
        going.set_function(lambda: worker.n_going)

    def count_tokens(self, done: Done) -> None:
        """What an answer took."""
        self._prompt_tokens.inc(done.n_prompt_tokens)
        self._generated_tokens.inc(done.n_generated_tokens)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """A request's end. `route` is one of the server's own, so that there are not too many."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
