"""Raw bytes on the port of `refllm run`, in front of what gives a request's body back."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tools.attack.http_answers import answers_in, check, conversation, expected_methods
from tools.attack.mutate import damaged_bytes
from tools.attack.requests import raw_request
from tools.attack.server_in_thread import catch_errors, check_log, listening_port
from tools.attack.target import Input, Target
from tools.attack.wat import HANDLER

__all__ = ["TARGET"]

PATHS = ("/.well-known/spin/health", "/a/b", "/a?b", "/%2e%2e/")


@functools.cache
def _port() -> int:
    """The port, which is there as long as the process."""
    from wasmtime import wat2wasm

    from refllm.engine import LocalEngine
    from refllm.wasm.host import Host, Program
    from refllm.wasm.http.application import open_application
    from refllm.wasm.http.asgi import SpinApp, connection_with
    from refllm.wasm.wasi.http import Request, Response

    class Echo(Host):
        def respond(self, program: Program, request: Request, *_: Any, **__: Any) -> Response:
            return Response(200, (("content-type", b"text/plain"),), request.body)

    with tempfile.TemporaryDirectory() as folder:
        component = Path(folder, "app.wasm")
        component.write_bytes(wat2wasm(HANDLER))
        application = open_application(component, {})
        engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
        app = SpinApp(application, Echo(), engines, max_body_bytes=1 << 18)
    connection = connection_with(max_connections=128, arrival_seconds=30.0)
    return listening_port(app, connection, date_header=False)


def _prepare(_folder: Path) -> None:
    catch_errors()
    conversation(_port(), [b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"], ["GET"])


def _build(random: Random, _folder: Path) -> Input:
    n_requests = random.choice((1, 1, 1, 1, 2, 3))
    raw = b"".join(
        raw_request(random, paths=PATHS, is_last=number == n_requests - 1)
        for number in range(n_requests)
    )
    if random.random() < 0.6:
        raw = damaged_bytes(random, raw, n_most=2)
    return Input(raw, len(raw))


def _read(given: Input) -> bytes:
    methods = expected_methods(given.value)
    received = conversation(_port(), [given.value], methods)
    check_log()
    return check(answers_in(received))


TARGET = Target(
    name="http-run",
    what="HTTP requests, as bytes, to refllm run",
    weight=30,
    build=_build,
    read=_read,
    prepare=_prepare,
)
