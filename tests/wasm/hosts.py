"""The hosts that tests run guests in: threads of this process, and processes of their own."""

from __future__ import annotations

import sys

from refllm.wasm.host import Host
from refllm.wasm.workers import WorkerHost

__all__ = ["HOSTS"]

HOSTS: list[type[Host]] = [Host, *([WorkerHost] if sys.platform == "linux" else [])]
