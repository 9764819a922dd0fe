"""`components`: requests to a component, one and eight at a time, guests in processes and not.

The components are written out in WebAssembly's text: one waits on the clock, one computes, and one
does both. Clients are threads that ask the host itself, again as soon as they have the response, so
that neither HTTP nor a model takes part. `refllm run` has a process for each guest; with all guests
in one process, as where the system has no fork, one computes at a time.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import Bench
from benchmarks.results import REFLLM, Figure
from benchmarks.serve import N_CLIENTS, ONE_CLIENT
from refllm.engine import LocalEngine
from refllm.wasm.guest import GuestFailed
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.wasi.http import Request
from refllm.wasm.workers import WorkerHost
from tools.attack.wat import handler

__all__ = ["ONE_PROCESS", "WORKS", "measure_components"]

ONE_PROCESS = "one process"
WAIT_MS = 50
ADDITIONS = 2_000_000  # some milliseconds, as the start of an interpreter takes
SECONDS = 0.8  # of one turn

CLOCK = """
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $pollable))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $forget (canon resource.drop $pollable))"""
GIVEN = """
  (export "subscribe" (func $subscribe)) (export "block" (func $block))
  (export "forget" (func $forget))"""
IMPORTED = """
  (import "" "subscribe" (func $subscribe (param i64) (result i32)))
  (import "" "block" (func $block (param i32)))
  (import "" "forget" (func $forget (param i32)))
  (global $pollable (mut i32) (i32.const 0)) (global $n (mut i32) (i32.const 0))"""
WAITS = f"""
  (global.set $pollable (call $subscribe (i64.const {WAIT_MS * 1_000_000})))
  (call $block (global.get $pollable)) (call $forget (global.get $pollable))"""
COMPUTES = f"""
  (loop $again
    (global.set $n (i32.add (global.get $n) (i32.const 1)))
    (br_if $again (i32.lt_u (global.get $n) (i32.const {ADDITIONS}))))"""


def _component(body: str) -> str:
    return handler(body, imports=CLOCK, given=GIVEN, imported=IMPORTED)


WORKS: Mapping[str, str] = {
    f"waits {WAIT_MS} ms": WAITS,
    f"computes, waits {WAIT_MS} ms": COMPUTES + WAITS,
    "computes": COMPUTES,
}


def measure_components(bench: Bench) -> None:
    """Requests a second to each component."""
    if sys.platform != "linux":
        bench.skip("processes", "refllm run has them on Linux only")
        return
    from wasmtime import wat2wasm

    seconds = 0.2 if bench.options.is_quick else SECONDS
    services = Services(LocalEngine(allowed_models=[]))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes, one_process = stack.enter_context(WorkerHost()), stack.enter_context(Host())
        turns: Mapping[str, tuple[Host, int]] = {
            REFLLM: (processes, N_CLIENTS),
            ONE_CLIENT: (processes, 1),
            ONE_PROCESS: (one_process, N_CLIENTS),
        }
        for work, body in WORKS.items():
            path = folder / f"{work}.wasm"
            path.write_bytes(wat2wasm(_component(body)))
            programs = {host: host.load_handler(path) for host in (processes, one_process)}
            samples: dict[str, list[float]] = {name: [] for name in turns}
            for round_ in range(bench.options.rounds + 1):
                for name in list(turns)[:: -1 if round_ % 2 else 1]:
                    host, n_clients = turns[name]
                    rate = _requests_per_second(host, programs[host], services, n_clients, seconds)
                    if round_ > 0:  # processes start in the first
                        samples[name].append(rate)
            labels = {"work": f"{N_CLIENTS} clients", "component": work}
            bench.add(Figure(labels=labels, unit="requests/s", samples=samples))


def _requests_per_second(
    host: Host, program: Program, services: Services, n_clients: int, seconds: float
) -> float:
    """Return how many requests a second the clients together had answered.

    Raises:
        GuestFailed: The component did not answer.
    """
    counts = [0] * n_clients
    failures: list[GuestFailed] = []
    start = time.perf_counter()

    def ask(client: int) -> None:
        try:
            while time.perf_counter() - start < seconds:
                host.respond(program, Request("GET", "/"), services)
                counts[client] += 1
        except GuestFailed as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=[client]) for client in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(counts) / (time.perf_counter() - start)
