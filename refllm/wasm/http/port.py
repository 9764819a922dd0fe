"""A real HTTP port in front of an application.

    with Host() as host, Port(application, host, engines, address) as port:
        print(port.url)
        wait_for_the_end()

A response is sent when the guest has made the whole of it. How many clients there may be, and how
slow one may be, is the business of connections.py.

Source: for the health check, https://spinframework.dev/http-trigger.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Self

from refllm.errors import LlmRuntimeError
from refllm.interface import Engine
from refllm.wasm.guest import GuestFailed, Output
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.http.application import Application
from refllm.wasm.http.body import read_body
from refllm.wasm.http.connections import Server, text_response
from refllm.wasm.http.routes import Match, best_match
from refllm.wasm.wasi.http import OF_THE_CONNECTION, Request, Response

__all__ = ["Port"]

HEALTH = "/.well-known/spin/health"
POLL_SECONDS = 0.05
ORIGIN = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
FOLD = re.compile(r"\r?\n[ \t]+")  # a value over several lines, as RFC 9112 had it long ago

logger = logging.getLogger(__name__)


class Port:
    """The application on a port, for as long as the context lasts."""

    def __init__(
        self,
        application: Application,
        host: Host,
        engines: Mapping[str, Engine],
        address: tuple[str, int],
        *,
        max_body_bytes: int = 16 * 1024 * 1024,
        max_connections: int = 128,
        arrival_seconds: float = 30.0,
    ) -> None:
        """Compile every component and take the port; 0 takes a free one.

        `engines` has an engine for each component. Errors: `LlmRuntimeError` naming a component's
        file that cannot run; `InvalidInput` if the port cannot be had.
        """
        self._application = application
        self._host = host
        self._max_body_bytes = max_body_bytes
        self._programs = {
            id_: _loaded(host, id_, component.source)
            for id_, component in application.components.items()
        }
        self._services = {
            id_: Services(
                engine=engines[id_],
                environment=component.environment,
                variables=component.variables,
                files=component.files,
            )
            for id_, component in application.components.items()
        }
        self._server = Server(
            address,
            self.answer,
            max_connections=max_connections,
            arrival_seconds=arrival_seconds,
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="refllm-wasm-port"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens, such as http://127.0.0.1:3000."""
        return f"http://{_address(*self._server.server_address[:2])}"

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and give running ones so long; whether all have ended by then."""
        self._server.shutdown()
        return self._server.wait_for_connections(seconds)

    def answer(self, request: BaseHTTPRequestHandler) -> Response:
        """The response to a request whose head has been read. Errors: `BadRequest`."""
        body = read_body(request.headers, request.rfile, limit=self._max_body_bytes)
        target = _target(request.path)
        path = target.partition("?")[0]
        if path == HEALTH:
            return text_response(200, "OK")
        match = best_match(self._application.routes, path)
        if match is None:
            return text_response(404, f"refllm: no route of the application matches {path}")
        return self._answer_of_component(request, match, target, body)

    def _answer_of_component(
        self, request: BaseHTTPRequestHandler, match: Match, target: str, body: bytes
    ) -> Response:
        id_ = match.route.component
        authority = request.headers.get("host") or self.url.removeprefix("http://")
        client = _address(*request.client_address[:2])
        asked = Request(
            method=request.command,
            target=target,
            headers=(
                *_headers_for_guest(request),
                *match.headers(full_url=f"http://{authority}{target}", client=client),
            ),
            body=body,
            authority=authority,
        )
        output = Output()
        begin = time.monotonic()
        try:
            response = self._host.respond(self._programs[id_], asked, self._services[id_], output)
        except GuestFailed as error:
            response = text_response(500, f"refllm: component {id_} failed: {error}")
            logger.error("%s: failed: %s", id_, _printable(str(error)))
        milliseconds = (time.monotonic() - begin) * 1000
        if output.text():
            logger.info("%s", _prefixed(id_, output.text()))
        line = f"{id_}: {asked.method} {_printable(target)} {response.status}"
        logger.info("%s, %.0f ms", line, milliseconds)
        return response


def _loaded(host: Host, id_: str, source: Path) -> Program:
    try:
        return host.load_handler(source)
    except LlmRuntimeError as error:
        what, *to_do = error.args
        raise LlmRuntimeError(f"component {id_}: {what}", *to_do) from error


def _headers_for_guest(request: BaseHTTPRequestHandler) -> list[tuple[str, bytes]]:
    """The client's headers, but those of the connection and those that only the host may set."""
    return [
        (name.lower(), FOLD.sub(" ", value).encode("latin-1", "replace"))
        for name, value in request.headers.items()
        if name.lower() not in OF_THE_CONNECTION and not name.lower().startswith("spin-")
    ]


def _target(target: str) -> str:
    """The path with the query, of a target that may be a whole URL or, for OPTIONS, an asterisk."""
    path = ORIGIN.sub("", target)
    return path if path.startswith("/") else f"/{path.removeprefix('*')}"


def _address(host: object, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _printable(text: str) -> str:
    """The text with what could move a terminal's cursor escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _prefixed(id_: str, text: str) -> str:
    return "\n".join(f"{id_}| {_printable(line)}" for line in text.splitlines())
