"""`serve`: clients of `refllm serve`, one and eight at a time, and many with mixed requests.

The server is a process of its own, on loopback; each client is a thread here that asks again as
soon as it has its answer. What eight get together is compared with what one gets alone: requests
for one model are continued together, which reads the weights once for all of them.
"""

from __future__ import annotations

import http
import http.client
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.compare import Bench
from benchmarks.peer import LONGEST_REASON, Unavailable
from benchmarks.results import REFLLM, Figure
from benchmarks.synthetic import model_file
from refllm.models.bundled import ROOT
from refllm.testing.server_process import running_server

__all__ = ["ONE_CLIENT", "measure_serve", "play"]

ONE_CLIENT = "one client"
N_CLIENTS = 8
N_MANY = 64
# A prompt that is soon read, and that no model here ends within 64 tokens.
PROMPT = "Once upon a time"
TINY_CHAT = ROOT / "llama" / "tiny-chat.gguf"


@dataclass(slots=True)
class Client:
    """A thread's connection and what came over it."""

    url: str
    seconds: list[float] = field(default_factory=list)
    n_tokens: int = 0
    failure: str = ""

    def run(self, requests: Sequence[tuple[str, Mapping[str, object]]], until: float) -> None:
        """Ask in turn until the time is up, or a request fails."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=600)
        try:
            for path, body in itertools.cycle(requests):
                start = time.perf_counter()
                if start >= until:
                    break
                connection.request("POST", path, json.dumps(body))
                response = connection.getresponse()
                answer = response.read()
                if response.status != http.HTTPStatus.OK:
                    self.failure = f"{path}: {response.status} {answer.decode()}"
                    break
                self.seconds.append(time.perf_counter() - start)
                self.n_tokens += json.loads(answer)["usage"].get("generatedTokenCount", 0)
        except (OSError, http.client.HTTPException) as error:
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            connection.close()


def measure_serve(bench: Bench) -> None:
    """Throughput on tiny-chat and the 1.1B in Q8_0, by both numerics; latencies of a mixed load."""
    options = bench.options
    models = {"tiny-chat": TINY_CHAT}
    if not options.is_quick:
        big = model_file(options.work, "1.1B", "Q8_0", peer_python=options.peer_python)
        models["1.1B-Q8_0"] = big
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / ".spin" / "ai-models" / "llama"
        root.mkdir(parents=True)
        for name, path in models.items():
            (root / f"{name}.gguf").symlink_to(path.absolute())
        arguments = ["--threads", str(options.threads), "--max-waiting", str(N_MANY)]
        with running_server(arguments, folder=Path(folder)) as server:
            for name in models:
                _throughput(bench, server.url, name, "exact")
            _mixed(bench, server.url)
        with running_server([*arguments, "--numerics", "int8"], folder=Path(folder)) as server:
            for name in models:
                _throughput(bench, server.url, name, "int8")


def _throughput(bench: Bench, url: str, model: str, numerics: str) -> None:
    n_tokens = 4 if bench.options.is_quick else 64
    request = ("/infer", _infer(model, n_tokens))
    seconds = 0.2 if bench.options.is_quick else 8.0
    play(url, N_CLIENTS, [request], 0.1)  # the model is loaded, kernels are compiled
    samples: dict[str, list[float]] = {REFLLM: [], ONE_CLIENT: []}
    turns = [(REFLLM, N_CLIENTS), (ONE_CLIENT, 1)]
    for round_ in range(bench.options.rounds):
        for name, n_clients in turns[:: -1 if round_ % 2 else 1]:
            clients, elapsed = play(url, n_clients, [request], seconds)
            samples[name].append(sum(client.n_tokens for client in clients) / elapsed)
    labels = {"work": f"{N_CLIENTS} clients", "model": model, "numerics": numerics}
    bench.add(Figure(labels=labels, unit="tokens/s", samples=samples))


def _mixed(bench: Bench, url: str) -> None:
    requests = [
        ("/infer", _infer("tiny-chat", 20)),
        ("/embed", {"model": "tiny-embed", "input": ["A cat sat on the mat."]}),
        ("/infer", {"model": "tiny-chat", "prompt": "[INST] Hello! [/INST]"}),
    ]
    play(url, N_CLIENTS, requests, 0.2)
    clients, elapsed = play(url, N_MANY, requests, 0.5 if bench.options.is_quick else 30.0)
    seconds = [second for client in clients for second in client.seconds]
    cuts = statistics.quantiles(seconds, n=100)
    labels = {"work": f"{N_MANY} clients, mixed requests", "model": "tiny-chat and tiny-embed"}
    for what, value, unit in (
        ("requests", len(seconds) / elapsed, "requests/s"),
        ("half within", cuts[49], "s"),
        ("99 of 100 within", cuts[98], "s"),
    ):
        bench.add(Figure(labels={**labels, "figure": what}, unit=unit, samples={REFLLM: [value]}))


def _infer(model: str, n_tokens: int) -> Mapping[str, object]:
    return {"model": model, "prompt": PROMPT, "options": {"maxTokens": n_tokens}}


def play(
    url: str, n_clients: int, requests: Sequence[tuple[str, Mapping[str, object]]], seconds: float
) -> tuple[list[Client], float]:
    """The clients, after that many seconds and the end of the answers under way.

    Errors: `Unavailable` if a request fails.
    """
    clients = [Client(url) for _ in range(n_clients)]
    start = time.perf_counter()
    threads = [
        threading.Thread(target=client.run, args=[requests, start + seconds]) for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    for client in clients:
        if client.failure:
            raise Unavailable(f"refllm serve: {client.failure[:LONGEST_REASON]}")
    return clients, elapsed
