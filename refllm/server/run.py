"""The port, and how the process ends: after SIGTERM running requests finish, and none is accepted.

Requests that do not finish in time are cancelled. Nothing can end a thread, such as one that loads
a model, and Python waits for threads: so the process then ends by `os._exit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

import uvicorn

from refllm.checkpoints.chat_renderer import default_renderer
from refllm.errors import InvalidInput, LlmError
from refllm.jit.workers import stop_workers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["bound_socket", "serve", "server_config"]

BACKLOG = 2048
# For responses to cancelled requests, and for threads to end; the application takes one at most.
SECONDS_AFTER_GRACE = 3.0
SECONDS_TO_READ = 0.5
SECONDS_FOR_THREADS = 0.5


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; port 0 takes a free one.

    Raises:
        InvalidInput: The address cannot be had.
    """
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


def server_config(
    app: ASGIApp, connection: type[asyncio.Protocol], **options: Any
) -> uvicorn.Config:
    """Return uvicorn's configuration for an application.

    Args:
        app: The ASGI application.
        connection: The class of connections, from `connection_class`.
        options: uvicorn's, which win over those that refllm's commands have in common.
    """
    common: dict[str, Any] = {
        "ws": "none",
        "log_level": "warning",
        "backlog": BACKLOG,
        "proxy_headers": False,  # a client could choose its address by them
        "server_header": False,
    }
    return uvicorn.Config(app, http=connection, **{**common, **options})


def serve(
    app: ASGIApp,
    bound: socket.socket,
    *,
    connection: type[asyncio.Protocol],
    grace_seconds: int,
    ready: Callable[[], object],
    idle_seconds: int = 5,
    date_header: bool = True,
    exit_codes: Mapping[int, int] = MappingProxyType({}),
) -> int:
    """Answer requests until SIGTERM or SIGINT, then for at most `grace_seconds` more.

    Where a thread goes on even then, this ends the process.

    Args:
        app: The ASGI application.
        bound: The port's socket.
        connection: The class of connections, from `connection_class`.
        grace_seconds: How long running requests may go on after a signal; a second signal ends
            them.
        ready: Is called when the port takes requests.
        idle_seconds: How long a connection may be idle between two requests.
        date_header: Whether each response gets a `date`; otherwise the application adds it.
        exit_codes: Exit codes by signal. A signal that is listed leaves requests no time; the code
            after any other is 0.

    Returns:
        The exit code of the process.

    Raises:
        InvalidInput: The application does not start.
        LlmError, OSError: As `ready`, once the application has ended.
    """
    config = server_config(
        app,
        connection,
        timeout_graceful_shutdown=grace_seconds,
        timeout_keep_alive=idle_seconds,
        date_header=date_header,
    )
    server = _Server(config, ready, exit_codes)
    asyncio.run(server.serve(sockets=[bound]))
    server.last_resort.cancel()
    stop_workers()
    if server.error is not None:
        raise server.error
    if not server.has_started:
        raise InvalidInput("the server did not start")
    if _is_any_thread_busy():
        server.end_at_once()
    return server.exit_code


class _Server(uvicorn.Server):
    """uvicorn's server, which after a signal ends with an exit code and not by that signal."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], object], exit_codes: Mapping[int, int]
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._exit_codes = exit_codes
        self.exit_code = 0
        self.has_started = False
        self.error: LlmError | OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        seconds = (config.timeout_graceful_shutdown or 0) + SECONDS_AFTER_GRACE
        # For an event loop that is blocked.
        self.last_resort = threading.Timer(seconds, self.end_at_once)
        self.last_resort.daemon = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and call `ready`."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.has_started = self.started
        if self.started:
            try:
                self._ready()
            except (LlmError, OSError) as error:
                self.error = error
                # Later: uvicorn does not end an application whose server ends during its start.
                self._loop.call_soon(setattr, self, "should_exit", True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On the first signal stop accepting requests; on the second cancel those that run.

        uvicorn cancels nothing on a second signal: it skips the application's end and logs a
        traceback.
        """
        is_first = not self.should_exit
        if is_first:
            self.should_exit = True
            self.exit_code = self._exit_codes.get(sig, 0)
            self.last_resort.start()
        if self._loop is not None and (not is_first or sig in self._exit_codes):
            self._loop.call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        """Cancel running requests; soon after, close connections that do not read the response."""
        for task in list(self.server_state.tasks):
            task.cancel()
        asyncio.get_running_loop().call_later(SECONDS_TO_READ, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle both signals in the same way."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end_at_once(self) -> None:
        """End this process without waiting for its threads."""
        stop_workers()
        default_renderer.close()  # while this process lives, its children's time is limited
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.exit_code)


def _is_any_thread_busy() -> bool:
    """Return whether another thread is still running after `SECONDS_FOR_THREADS`."""
    until = time.monotonic() + SECONDS_FOR_THREADS
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for thread in others:
        thread.join(max(until - time.monotonic(), 0))
    return any(thread.is_alive() for thread in others)
