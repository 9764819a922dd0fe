"""`guests`: components of Spin's SDKs beside each other, from their file to the first response.

The tests' guests are measured, each asked for one `infer` of an engine that answers at once, so
that no model takes part: with an empty cache, where the component is compiled first, from the
machine code that the cache keeps, and in requests after the first, each in a new instance.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.compare import Bench
from benchmarks.results import REFLLM, Figure
from benchmarks.startup import CACHE_VARIABLES
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.wasi.http import Request
from tests.guests.build import component
from tests.guests.calls import Recorder

__all__ = ["GUESTS", "measure_guests"]

GUESTS: Mapping[str, str] = {
    "Rust spin-sdk 5": "rust_5",
    "TypeScript spin-llm 1": "javascript",
    "TypeScript @fermyon/spin-sdk 2": "fermyon_2",
    "Python spin-sdk 3": "python_3",
    "Python spin-sdk 5": "python_5",
}
CALL = json.dumps({"function": "infer", "arguments": ["llama2-chat", "Once"]}).encode()
REQUEST = Request("POST", "/", (), CALL)
ROUNDS_OF_A_COMPILATION = 4  # because it takes seconds
N_REQUESTS = 20  # of one sample
MILLISECONDS = 1e3
BYTES_OF_MB = 1e6


def measure_guests(bench: Bench) -> None:
    """Seconds to the first response, compiled and loaded, and milliseconds of each later one."""
    n_requests = 2 if bench.options.is_quick else N_REQUESTS
    figures: dict[str, list[Figure]] = {}
    for name, guest in GUESTS.items():
        try:
            path = component(guest)
        except pytest.skip.Exception as reason:
            bench.skip(name, reason)
            continue
        compiled, loaded, requests = [], [], []
        n_compilations = math.ceil(bench.options.rounds / ROUNDS_OF_A_COMPILATION)
        for _ in range(n_compilations):
            with (
                tempfile.TemporaryDirectory() as cache,
                patch.dict(os.environ, dict.fromkeys(CACHE_VARIABLES, cache)),
            ):
                compiled.append(_first_response(path))
                for _ in range(math.ceil(bench.options.rounds / n_compilations)):
                    loaded.append(_first_response(path))
                    requests.append(_later_response(path, n_requests))
        for work, unit, samples in (
            ("size", "MB", [path.stat().st_size / BYTES_OF_MB]),
            ("first response, compiled", "s", compiled),
            ("first response, kept code", "s", loaded),
            ("a response", "ms", requests),
        ):
            labels = {"work": work, "guest": name}
            figure = Figure(labels=labels, unit=unit, samples={REFLLM: samples})
            figures.setdefault(work, []).append(figure)
    for of_each_guest in figures.values():
        for figure in of_each_guest:
            bench.add(figure)


def _first_response(path: Path) -> float:
    """Return the seconds from a component's file to its response, in a new host."""
    start = time.perf_counter()
    with Host() as host:
        _respond(host, host.load_handler(path))
        return time.perf_counter() - start


def _later_response(path: Path, n_requests: int) -> float:
    """Return the milliseconds of a request after the first, the mean of several."""
    with Host() as host:
        program = host.load_handler(path)
        _respond(host, program)
        start = time.perf_counter()
        for _ in range(n_requests):
            _respond(host, program)
        return (time.perf_counter() - start) / n_requests * MILLISECONDS


def _respond(host: Host, program: Program) -> None:
    response = host.respond(program, REQUEST, Services(Recorder()))
    if response.status != 200:
        name = program.path.name
        raise ValueError(f"{name} answered {response.status}: {response.body!r:.200}")
