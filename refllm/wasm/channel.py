"""Messages between the server and a process that runs guests: tuples, pickled, over a socket.

A guest is not trusted. Should one ever break out of WebAssembly, it could write to the socket, so
the server reads values of Python's own types only: an unpickled class could run code.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
from typing import Any

__all__ = ["Channel", "Gone"]


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
            self._socket.sendall(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except (OSError, ValueError) as error:  # the second where the channel is closed
            raise Gone from error

    def receive(self) -> tuple[Any, ...]:
        """Return the next message. Raises: Gone."""
        try:
            message = self._unpickler(self._incoming).load()
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
        except OSError:
            pass
        return True

    def hang_up(self) -> None:
        """End the connection for both sides; a thread that reads from it gets `Gone`."""
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the socket; no thread may use it any more."""
        self._incoming.close()
        self._socket.close()


class _Plain(pickle.Unpickler):
    """Refuses every class that a message names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"a message has a {module_name}.{global_name}")
