"""Servers that answer in a thread while a test asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import TCPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["listening", "serving"]


@contextmanager
def listening(server: TCPServer) -> Iterator[int]:
    """Its port, on which it answers until the context ends, and no longer."""
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
    """The address of an ASGI application behind uvicorn, as refllm's commands run it."""
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
