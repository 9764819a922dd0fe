"""The port, and how the process ends: SIGTERM lets what runs finish, and nothing new begin."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from refllm.api import InvalidInput
from refllm.spin.server.connections import connection_class
from refllm.spin.server.limits import Limits

__all__ = ["bound_socket", "serve"]

BACKLOG = 2048


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes one that is free. Errors: `InvalidInput`, saying why."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        with contextlib.ExitStack() as if_it_fails:
            bound = if_it_fails.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            if_it_fails.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        raise InvalidInput(f"cannot listen on {host}:{port}: {error}") from error
    return bound


def serve(
    app: ASGIApp,
    bound: socket.socket,
    *,
    limits: Limits,
    grace_seconds: int,
    ready: Callable[[], object],
) -> None:
    """Answer requests until SIGTERM or SIGINT, then for at most `grace_seconds` more.

    `ready` is called when the port takes requests. Errors: `InvalidInput` if the application does
    not start.
    """
    config = uvicorn.Config(
        app,
        http=connection_class(limits),
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=grace_seconds,
        backlog=BACKLOG,
        server_header=False,
        date_header=True,
    )
    server = _Server(config, ready)
    asyncio.run(server.serve(sockets=[bound]))
    if not server.has_started:
        raise InvalidInput("the server did not start")


class _Server(uvicorn.Server):
    """uvicorn, which would end by the signal that it got; this one ends as one that did well."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self.has_started = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        await super().startup(sockets)
        self.has_started = self.started
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A second signal ends the wait for what runs."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
