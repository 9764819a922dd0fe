"""A server on loopback that takes a POST, and answers as it is told to, or misbehaves."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import socketserver
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.listening import listening

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
    "never_answers",
    "never_ends",
    "sends",
    "serve",
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
    """Where the server is, how it replies, and what it was asked."""

    reply: Reply
    url: str = ""
    requests: list[Request] = field(default_factory=list)


def sends(data: bytes) -> Reply:
    """Exactly these bytes, and then the end of the connection."""
    return lambda connection, _: connection.sendall(data)


def answers(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """An HTTP answer: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return sends("\r\n".join([*lines, "", ""]).encode() + data)


def never_answers(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)  # nothing comes until the client goes


def drips(connection: socket.socket, _: bytes) -> None:
    """A byte now and then, each well before a timeout that counts from the one before."""
    connection.sendall(b"HTTP/1.1 200 Said\r\n\r\n")
    connection.settimeout(PACE)
    while True:
        connection.sendall(b" ")
        with contextlib.suppress(TimeoutError):
            connection.recv(1)


def never_ends(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 Said\r\n\r\n")
    while True:
        connection.sendall(b" " * 4096)


@contextmanager
def serve(reply: Reply, *, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server that replies so to each request, for as long as the context lasts."""
    server = Server(reply)

    class Handler(socketserver.StreamRequestHandler):
        connection: socket.socket

        def handle(self) -> None:
            head = b"".join(itertools.takewhile(lambda line: line != b"\r\n", self.rfile))
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
