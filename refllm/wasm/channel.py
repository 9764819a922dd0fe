"""Messages between the server and a process that runs guests: tuples, over a socket.

To a process of Python they are pickled, to one of Node they are JSON.

A guest is not trusted. Should one ever break out of WebAssembly, it could write to the socket, so
the server reads values of Python's own types only: an unpickled class could run code.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import pickle
import socket
import struct
from pathlib import Path
from typing import Any

__all__ = ["ORDER_BYTES", "Channel", "Gone", "JsonChannel"]

ORDER_BYTES = 64 * 1024  # of an order to the process that starts others, and of its answer
LENGTH = struct.Struct(">I")


class Gone(Exception):
    """The other side has ended, or has hung up."""


class Channel:
    """One side of a connection.

    Args:
        end: A connected socket, which belongs to the channel from now on.
        is_trusted: Whether the other side may send objects of any class.
    """

    def __init__(self, end: socket.socket, *, is_trusted: bool) -> None:
        self._socket = end
        self._unpickler = pickle.Unpickler if is_trusted else _Plain
        self._incoming = end.makefile("rb")

    def send(self, *message: object) -> None:
        """Send a message; block until the system has taken it. Raises: Gone."""
        try:
            self._socket.sendall(self._encoded(message))
        except OSError as error:
            raise Gone from error

    def receive(self) -> tuple[Any, ...]:
        """Return the next message. Raises: Gone."""
        try:
            message = self._decoded()
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise Gone from error
        if not isinstance(message, tuple):
            raise Gone
        return message

    def has_news(self) -> bool:
        """Return whether the other side has sent something, or has gone."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it has gone
            return True
        return True

    def hang_up(self) -> None:
        """End the connection for both sides; a thread that reads from it gets `Gone`."""
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the socket; no thread may use it any more."""
        self._incoming.close()
        self._socket.close()

    def _encoded(self, message: tuple[object, ...]) -> bytes:
        return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)

    def _decoded(self) -> object:
        return self._unpickler(self._incoming).load()


class JsonChannel(Channel):
    """A channel to a program in another language: JSON after its length, 4 bytes big-endian.

    Bytes are an object with base64: `{"$bytes": "aGk="}`. JavaScript has a float as an object with
    its text, `{"$float": "NaN"}`, as its JSON has no NaN, and no point in 2.0.
    """

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end, is_trusted=False)

    def _encoded(self, message: tuple[object, ...]) -> bytes:
        text = json.dumps(message, default=_as_json).encode()
        return LENGTH.pack(len(text)) + text

    def _decoded(self) -> object:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        return tuple(json.loads(self._read(length), object_hook=_from_json))

    def _read(self, length: int) -> bytes:
        data = self._incoming.read(length)
        if len(data) < length:
            raise EOFError
        return data


def _as_json(value: object) -> object:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"a message has a {type(value).__name__}")


def _from_json(value: dict[str, Any]) -> object:
    match value:
        case {"$bytes": str(data)}:
            return base64.b64decode(data)
        case {"$float": str(text)}:
            return float(text)
        case _:
            return value


class _Plain(pickle.Unpickler):
    """Refuses every class that a message names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"a message has a {module_name}.{global_name}")
