"""The body of an HTTP request: by its length or in chunks, and never more than a limit.

Source: RFC 9112, sections 6 and 7.
"""

from __future__ import annotations

import re
from email.message import Message
from io import BufferedIOBase

__all__ = ["LENGTH", "BadRequest", "read_body"]

LENGTH = re.compile(r"[0-9]{1,19}")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
END_OF_LINE = (b"\r\n", b"\n")
LINE_BYTES = 8192
TRAILER_LINES = 100


class BadRequest(Exception):
    """A request that is refused with `status`, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_body(headers: Message, source: BufferedIOBase, *, limit: int) -> bytes:
    """The body that follows these headers, as `source` has it.

    Errors: `BadRequest` if it is longer than `limit` bytes, ends early, or its headers leave open
    where it ends, as one who smuggles a request past a proxy would have it.
    """
    lengths = set(headers.get_all("content-length", []))
    encodings = [value.strip().lower() for value in headers.get_all("transfer-encoding", [])]
    if encodings:
        if lengths:
            raise BadRequest(400, "the request has both a content-length and a transfer-encoding")
        if encodings != ["chunked"]:
            raise BadRequest(
                501, f"the transfer-encoding {', '.join(encodings)!a:.80} is not supported"
            )
        return _read_chunks(source, limit)
    if not lengths:
        return b""
    length = lengths.pop().strip()
    if lengths or not LENGTH.fullmatch(length):
        raise BadRequest(400, "the content-length must be one whole number")
    _check_size(int(length), limit)
    return _read_exactly(source, int(length))


def _read_chunks(source: BufferedIOBase, limit: int) -> bytes:
    body = bytearray()
    while True:
        size = CHUNK_SIZE.fullmatch(source.readline(LINE_BYTES))
        if size is None:
            raise BadRequest(400, "a chunk's size must be a hexadecimal number")
        n_bytes = int(size[1], 16)
        if n_bytes == 0:
            break
        _check_size(len(body) + n_bytes, limit)
        body += _read_exactly(source, n_bytes)
        if source.readline(LINE_BYTES) not in END_OF_LINE:
            raise BadRequest(400, "a chunk is longer than its size, or the body ends after it")
    for _ in range(TRAILER_LINES):
        trailer = source.readline(LINE_BYTES)
        if trailer in END_OF_LINE:
            return bytes(body)
        if not trailer.endswith(b"\n"):
            raise BadRequest(400, "the body ends early, or a trailer is too long")
    raise BadRequest(400, f"the body has more than {TRAILER_LINES} trailers")


def _read_exactly(source: BufferedIOBase, n_bytes: int) -> bytes:
    data = source.read(n_bytes)
    if len(data) < n_bytes:
        raise BadRequest(400, "the body ends early")
    return data


def _check_size(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        raise BadRequest(413, f"the body is longer than the limit of {limit} bytes")
