"""Raw bytes on the port of `refllm run`, in front of what gives a request's body back."""

from __future__ import annotations

import functools
import queue
import tempfile
import threading
from pathlib import Path
from random import Random

from tools.attack.http_answers import answers_in, check, conversation
from tools.attack.mutate import damaged_bytes
from tools.attack.requests import raw_request
from tools.attack.server_in_thread import catch_errors, check_log
from tools.attack.target import Input, Target
from tools.attack.wat import HANDLER

__all__ = ["TARGET"]

PATHS = ("/.well-known/spin/health", "/a/b", "/a?b", "/%2e%2e/")


@functools.cache
def _port() -> int:
    """The port, which is there as long as the process."""
    listening: queue.Queue[int | BaseException] = queue.Queue()
    # The threads of a thread that no end of the process waits for are such threads, too.
    threading.Thread(target=_listen, args=[listening], daemon=True).start()
    port = listening.get()
    if isinstance(port, BaseException):
        raise port
    return port


def _listen(listening: queue.Queue[int | BaseException]) -> None:
    from wasmtime import wat2wasm

    from refllm.engine import LocalEngine
    from refllm.wasm.guest import Limits
    from refllm.wasm.host import Host
    from refllm.wasm.http.application import open_application
    from refllm.wasm.http.port import Port
    from refllm.wasm.wasi.http import Request, Response

    class Echo(Host):
        def respond(self, _program: object, request: Request, *_: object) -> Response:
            return Response(200, (("content-type", b"text/plain"),), request.body)

    try:
        with tempfile.TemporaryDirectory() as folder:
            component = Path(folder, "app.wasm")
            component.write_bytes(wat2wasm(HANDLER))
            application = open_application(component, {})
            engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
            limits = Limits(memory_bytes=2**24, seconds=2.0)
            with (
                Echo(limits) as host,
                Port(application, host, engines, ("127.0.0.1", 0), max_body_bytes=1 << 18) as port,
            ):
                listening.put(int(port.url.rpartition(":")[2]))
                threading.Event().wait()
    except BaseException as error:  # noqa: BLE001 - else everyone would wait forever
        listening.put(error)


def _prepare(_folder: Path) -> None:
    catch_errors()
    conversation(_port(), [b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"], None)


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
    received = conversation(_port(), [given.value], None)
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
