"""The port, and how the process ends: SIGTERM lets what runs finish, and nothing new begin.

What does not finish in time is given up. Nothing can end a thread, such as one that loads a model,
and Python waits for threads: so the process then ends without them.
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
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from refllm.checkpoints.chat_renderer import default_renderer
from refllm.errors import InvalidInput
from refllm.server.connections import connection_class
from refllm.server.limits import Limits

__all__ = ["bound_socket", "serve"]

BACKLOG = 2048
# To tell who waits, and to see that threads end; the application takes one of them at most.
SECONDS_AFTER_GRACE = 3.0
SECONDS_TO_READ = 0.5
SECONDS_FOR_THREADS = 0.5


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

    Where a thread goes on even then, this ends the process, with exit code 0.

    Args:
        app: What answers.
        bound: The port's socket.
        limits: What a connection may cost.
        grace_seconds: How long what runs may go on after a signal; another signal ends that, too.
        ready: Is called when the port takes requests.

    Raises:
        InvalidInput: The application does not start.
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
    server.last_resort.cancel()
    if not server.has_started:
        raise InvalidInput("the server did not start")
    if _is_any_thread_busy():
        _end_at_once()


class _Server(uvicorn.Server):
    """uvicorn, which would end by the signal that it got; this one ends as one that did well."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self.has_started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        seconds = (config.timeout_graceful_shutdown or 0) + SECONDS_AFTER_GRACE
        # The loop itself may be what does not come to its end.
        self.last_resort = threading.Timer(seconds, _end_at_once)
        self.last_resort.daemon = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.has_started = self.started
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets what runs finish, the next one ends the wait for it.

        uvicorn's own way to end that wait leaves the application out, and says so in a traceback.
        """
        if not self.should_exit:
            self.should_exit = True
            self.last_resort.start()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        """Cancel what runs; soon after, hang up on clients that do not read what they are told."""
        for task in list(self.server_state.tasks):
            task.cancel()
        asyncio.get_running_loop().call_later(SECONDS_TO_READ, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Both signals ask for the same."""
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_any_thread_busy() -> bool:
    """Whether a thread does not end soon, now that there is nothing left to do."""
    until = time.monotonic() + SECONDS_FOR_THREADS
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for thread in others:
        thread.join(max(until - time.monotonic(), 0))
    return any(thread.is_alive() for thread in others)


def _end_at_once() -> None:
    """End this process with exit code 0, whatever its threads do."""
    default_renderer.close()  # as long as this process lives, its children's time is limited
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
