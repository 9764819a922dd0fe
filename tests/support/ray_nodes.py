"""Nodes of a Ray cluster on this machine, each with processes and an object store of its own.

`python -m tests.support.ray_nodes` starts a head without CPUs and writes its address. For a line
{"cpus": 1, "environment": {…}} it adds a node and writes the process id of its raylet. It ends, and
the cluster with it, at the end of its standard input: also when the test process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

__all__ = ["Nodes", "end", "ray_nodes"]

STORE_BYTES = 80 * 2**20
END_SECONDS = 60
STARTS = 3  # of a node; Ray gives up after 30 s, which a busy machine can need
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every node on loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # A node that is killed is gone for the others after these seconds, not after half a minute.
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_period_ms": "2000",
}


@dataclass(frozen=True, slots=True)
class Nodes:
    """A cluster.

    Attributes:
        address: HOST:PORT of its head.
        environment: What a client needs in its environment, beside the process's own.
    """

    address: str
    environment: Mapping[str, str]
    _process: subprocess.Popen[str]

    def add(self, *, cpus: int, environment: Mapping[str, str] | None = None) -> psutil.Process:
        """Add a node and return its raylet; the node's other processes are children of it."""
        return psutil.Process(self._ask({"cpus": cpus, "environment": environment or {}}))

    def _ask(self, asked: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the cluster's process has ended"
        return json.loads(line)


@contextlib.contextmanager
def ray_nodes(environment: Mapping[str, str]) -> Iterator[Nodes]:
    """Run a cluster for the `with` block; at its end no process of it is left."""
    for_clients = ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment, **for_clients},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "no cluster was started"
        yield Nodes(json.loads(line), for_clients, process)
    finally:
        started = [psutil.Process(process.pid), *_children(process.pid)]
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        for each in started:
            end(each)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def end(process: psutil.Process) -> None:
    """Kill a process and its children, as far as they run."""
    for each in [process, *_children(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return children
    return []


def _main() -> None:
    from ray.cluster_utils import Cluster

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray's own lines
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster: Any = Cluster()
    for n_left in reversed(range(STARTS)):
        try:
            cluster.add_node(**head)
            break
        except Exception:
            if not n_left:
                raise
            cluster = Cluster()
    print(json.dumps(cluster.address), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        for n_left in reversed(range(STARTS)):
            try:
                node = cluster.add_node(
                    num_cpus=asked["cpus"],
                    env_vars=asked["environment"],
                    object_store_memory=STORE_BYTES,
                )
                break
            except Exception:
                if not n_left:
                    raise
        print(json.dumps(node.all_processes["raylet"][0].process.pid), file=replies, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _main()
