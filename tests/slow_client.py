"""A client that sends a byte now and then, for as long as anybody listens."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

__all__ = ["BODY_WITHOUT_END", "HEAD_WITHOUT_END", "answer_to_drops"]

SECONDS = 60
BETWEEN_DROPS = 0.01
MOST_DROPS = 2000

HEAD_WITHOUT_END = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: "
BODY_WITHOUT_END = b"POST /infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"


def answer_to_drops(url: str, begin: bytes) -> bytes:
    """Everything that comes back until the server ends the connection."""
    address = urlsplit(url)
    received = b""
    with (
        suppress(ConnectionError),  # a byte was on its way when the server hung up
        socket.create_connection((address.hostname, address.port), SECONDS) as connection,
    ):
        connection.sendall(begin)
        for _ in range(MOST_DROPS):
            if not select.select([connection], [], [], BETWEEN_DROPS)[0]:
                connection.sendall(b"x")
                continue
            data = connection.recv(65536)
            if not data:
                return received
            received += data
        pytest.fail(f"the server goes on listening; it said {received!r}")
    return received
