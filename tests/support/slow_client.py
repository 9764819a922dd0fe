"""A client that sends a byte now and then, for as long as anybody listens."""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.conftest import HUNG_SECONDS

__all__ = ["BODY_WITHOUT_END", "HEAD_WITHOUT_END", "answer_to_drops"]

BETWEEN_DROPS = 0.01

HEAD_WITHOUT_END = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: "
BODY_WITHOUT_END = b"POST /infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"


def answer_to_drops(url: str, begin: bytes) -> bytes:
    """Everything that comes back until the server ends the connection."""
    address = urlsplit(url)
    received = b""
    with (
        suppress(ConnectionError),  # a byte was on its way when the server hung up
        socket.create_connection((address.hostname, address.port), HUNG_SECONDS) as connection,
    ):
        connection.sendall(begin)
        until = time.monotonic() + HUNG_SECONDS
        while time.monotonic() < until:
            if not select.select([connection], [], [], BETWEEN_DROPS)[0]:
                connection.sendall(b"x")
                continue
            data = connection.recv(65536)
            if not data:
                return received
            received += data
        pytest.fail(f"the server goes on listening; it said {received!r}")
    return received
