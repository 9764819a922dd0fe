"""refllm's server in a thread of this process, whose time and memory are thus the process's own."""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Collection
from pathlib import Path

from tools.attack.http_answers import FaultError, conversation
from tools.attack.requests import BODIES, post

__all__ = ["catch_errors", "check_log", "helpers", "prepare", "serving_port"]

LIMITS = {
    "max_body_bytes": 1 << 18,
    "max_prompt_tokens": 200,
    "max_tokens": 4,
    "max_texts": 64,
    "max_waiting": 8,
    "request_seconds": 10.0,
}
"""Low enough that an input takes milliseconds; what is above them is refused as by any server."""


class _Errors(logging.Handler):
    """Keeps what is logged as an error: what a server's operator would have to look into."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter())
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


@functools.cache
def serving_port() -> int:
    """The port of the one server of this process, which serves the models that ship with refllm."""
    import uvicorn

    from refllm.engine import LocalEngine
    from refllm.models.bundled import ROOT
    from refllm.server.app import application
    from refllm.server.connections import connection_class
    from refllm.server.limits import Limits
    from refllm.server.run import bound_socket

    catch_errors()
    limits = Limits(**LIMITS)  # type: ignore[arg-type]
    engine = LocalEngine(roots=[ROOT], threads=1, stand_ins=True)
    for model in ("tiny-chat", "tiny-embed"):
        engine.load(model)
    config = uvicorn.Config(
        application(engine, limits=limits, token=None, hosts=[]),
        http=connection_class(limits),
        ws="none",
        log_config=None,
        server_header=False,
    )
    server = uvicorn.Server(config)
    bound = bound_socket("127.0.0.1", 0)
    threading.Thread(target=server.run, args=[[bound]], daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    port: int = bound.getsockname()[1]
    return port


def prepare(_folder: Path) -> None:
    """Have every route answer once."""
    port = serving_port()
    for path, value, _ in BODIES:
        conversation(port, [post(path, json.dumps(value).encode())], ["GET"])
    check_log()


def helpers() -> Collection[int]:
    """The processes that render chat templates for the server."""
    from refllm.checkpoints.chat_renderer import default_renderer

    return [child.process_id for child in default_renderer.children]


def catch_errors() -> None:
    """Keep what is logged as an error from now on, for `check_log`."""
    logging.getLogger().addHandler(_errors())


@functools.cache
def _errors() -> _Errors:
    return _Errors()


def check_log() -> None:
    """Raise `FaultError` where the server has logged an error since the last time."""
    seen, _errors().seen = _errors().seen, []
    if seen:
        raise FaultError("the server logged an error:\n" + "\n".join(seen)[-2500:])
