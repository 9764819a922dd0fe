"""Servers on loopback, each in a thread; `serve` sends the replies of a test, good or bad."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import TCPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = [
    "CHAT",
    "EMBEDDINGS",
    "INFERENCE",
    "PACE",
    "VECTORS",
    "Reply",
    "Request",
    "Server",
    "answers",
    "drips",
    "listening",
    "never_answers",
    "never_ends",
    "repeats",
    "sends",
    "serve",
    "serving",
]

INFERENCE = {"text": " wörld", "usage": {"promptTokenCount": 3, "generatedTokenCount": 2}}
EMBEDDINGS = {"embeddings": [[0.1, -1], [0, 2.5]], "usage": {"promptTokenCount": 9}}
CHAT = {
    "choices": [{"message": {"content": " wörld"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}
VECTORS = {
    "data": [{"embedding": [0.1, -1]}, {"embedding": [0, 2.5]}],
    "usage": {"prompt_tokens": 9},
}

Reply = Callable[[socket.socket, bytes], None]  # a connection, and the body that came from it
PACE = 0.02  # seconds between two steps of a slow server


@dataclass(frozen=True, slots=True)
class Request:
    head: bytes
    body: bytes


@dataclass
class Server:
    """The address of a server, its reply to a POST, and the POST requests so far."""

    reply: Reply
    url: str = ""
    requests: list[Request] = field(default_factory=list)


def sends(data: bytes) -> Reply:
    """Send these bytes, and close the connection."""
    return lambda connection, _: connection.sendall(data)


def answers(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Send an HTTP response: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return sends("\r\n".join([*lines, "", ""]).encode() + data)


def never_answers(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)  # nothing comes until the client goes


def repeats(begin: bytes, data: bytes) -> Reply:
    """Send `data` every PACE seconds: sooner than a timeout that restarts with each byte."""

    def reply(connection: socket.socket, _: bytes) -> None:
        connection.sendall(begin)
        connection.settimeout(PACE)
        while True:
            connection.sendall(data)
            with contextlib.suppress(TimeoutError):
                connection.recv(1)

    return reply


drips = repeats(b"HTTP/1.1 200 OK\r\n\r\n", b" ")


def never_ends(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 Said\r\n\r\n")
    while True:
        connection.sendall(b" " * 4096)


@contextmanager
def listening(server: TCPServer) -> Iterator[int]:
    """Run a server of the standard library in a thread; yield its port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    with server:
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving(
    app: ASGIApp, connection: type[asyncio.Protocol], host: str = "127.0.0.1"
) -> Iterator[str]:
    """Run an ASGI application under uvicorn, as refllm's commands do; yield its address."""
    import uvicorn

    from refllm.server.run import bound_socket, server_config

    options = {"timeout_keep_alive": 30, "log_config": None, "date_header": False}
    server = uvicorn.Server(server_config(app, connection, **options))
    bound = bound_socket(host, 0)
    port = bound.getsockname()[1]
    thread = threading.Thread(target=server.run, args=[[bound]])
    thread.start()
    try:
        while not server.started and thread.is_alive():
            threading.Event().wait(0.01)
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serve(reply: Reply, *, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server that answers GET with `{}` and a POST with `reply`."""
    server = Server(reply)

    class Handler(socketserver.StreamRequestHandler):
        connection: socket.socket

        def handle(self) -> None:
            head = b"".join(itertools.takewhile(lambda line: line != b"\r\n", self.rfile))
            if head.startswith(b"GET "):
                answers({})(self.connection, b"")
                return
            length = re.search(rb"content-length: (\d+)", head)
            if length is None:  # the client went away, or speaks TLS
                return
            request = Request(head, self.rfile.read(int(length[1])))
            server.requests.append(request)
            server.reply(self.connection, request.body)

    class Listener(socketserver.ThreadingTCPServer):
        request_queue_size = 64

        def finish_request(
            self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
        ) -> None:
            assert isinstance(request, socket.socket)
            # A client that goes away is what many tests are about.
            with contextlib.suppress(OSError):
                if tls is None:
                    Handler(request, client_address, self)
                    return
                with tls.wrap_socket(request, server_side=True) as secure:
                    Handler(secure, client_address, self)

    with listening(Listener(("127.0.0.1", 0), Handler)) as port:
        scheme = "http" if tls is None else "https"
        server.url = f"{scheme}://127.0.0.1:{port}"
        yield server
