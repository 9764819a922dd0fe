"""The contestant's end of the protocol: one JSON object on a line in, one out.

    → {"run": "decode", "with": {"prompt": [1, 2], "token_ids": [3, 4]}}
    ← {"seconds": [0.71], "answer": [1.5, -0.25]}

`run` names an action, `with` holds its arguments. A failure is answered with {"error": "why"}, and
the end of the input ends the program. What a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["memory", "serve", "timed", "versions"]

Action = Callable[..., Mapping[str, Any]]


def serve(actions: Mapping[str, Action]) -> None:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = actions[request["run"]](**request["with"])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that `work` took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def memory() -> dict[str, int]:
    """This process's memory in bytes, as Linux counts it; empty on other systems.

    VmHWM is the most that was ever resident; RssAnon and RssFile are resident now, the latter
    being pages of mapped files, which the system can take back at any time. Source: proc(5).
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    wanted = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    return {name: int(fields[name].split()[0]) * 1024 for name in wanted}


def versions(*distributions: str) -> dict[str, str]:
    """The versions of Python and of installed distributions."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: version(name) for name in distributions}
