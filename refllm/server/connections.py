"""A client's connection: uvicorn's, with limits on how many there are and how slow one may be.

Used by `refllm serve` and `refllm run`. uvicorn closes a connection that is idle between two
requests. It sets no time limit on the first request, on the rest of a head, on the rest of a body
that is refused already, and on a client that does not read the response.

Needs uvicorn and no more of the extra `server`, because `refllm run` has the extra `wasm`.

Source: RFC 9110, 15.5.9 (408); RFC 9112, 9.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Arrival", "ConnectionLimits", "Refusal", "connection_class"]

SECONDS_WITHOUT_ROOM = 2.0  # for a head to arrive that is answered with 503
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a connection tells the application about a request, in the scope's `state` by `key`.

    Attributes:
        deadline: When the whole request must have arrived, by the event loop's clock.
        has_room: Whether the connection is within the limit on connections.
    """

    deadline: float
    has_room: bool
    key: ClassVar[str] = "refllm_arrival"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What connections may take.

    Attributes:
        connections: How many may be open.
        arrival_seconds: The time for a request, head and body, to arrive.
        answer_seconds: The time for an answer, of which the client has `arrival_seconds` more to
            read it; None sets no limit while the client reads.
    """

    connections: int
    arrival_seconds: float
    answer_seconds: float | None = None


class Refusal(NamedTuple):
    """The response to a request that the application does not receive."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


Refuse = Callable[[int, str], Refusal]


def connection_class(limits: ConnectionLimits, refuse: Refuse) -> type[asyncio.Protocol]:
    """Return the class of which uvicorn makes an instance for each connection.

    Args:
        limits: Of each connection, and of all together.
        refuse: Returns the response for a status (400, 408, 414, 431, 501 or 503) and h11's reason.
    """

    class Connection(_Connection):
        _limits = limits
        _refuse = staticmethod(refuse)

    return Connection


class _Connection(H11Protocol):
    """Sets the deadline of each request, and closes what the application never receives."""

    _limits: ConnectionLimits
    _refuse: Refuse
    _timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None
    _linger_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._has_room = len(self.connections) <= self._limits.connections
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_timing_answer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_timing_answer()
            if self._limits.answer_seconds is not None:
                self._time_answer(self._limits.answer_seconds + self._limits.arrival_seconds)

    def data_received(self, data: bytes) -> None:
        if self._linger_bytes is not None:
            self._linger_bytes += len(data)
            if self._linger_bytes > LINGER_BYTES:
                self.transport.close()
            return
        if self._timer is None and self.conn.their_state is h11.IDLE:
            self._start_waiting()
        super().data_received(data)
        if self._linger_bytes is None and not self._is_client_due():
            self._stop_waiting()

    def eof_received(self) -> None:
        """Refuse a request that ends early. asyncio then closes the connection."""
        is_partial = self.conn.their_state is h11.SEND_BODY or (
            self.conn.their_state is h11.IDLE and not self._is_idle()
        )
        if is_partial and self._linger_bytes is None:
            self.conn.receive_data(b"")
            self.handle_events()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._limits.answer_seconds is None:
            self._time_answer(self._limits.arrival_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._limits.answer_seconds is None:
            self._stop_timing_answer()

    def on_response_complete(self) -> None:
        if self._limits.answer_seconds is None:
            self._time_answer(self._limits.arrival_seconds)
        self._start_waiting()  # the next request may be here, in part or whole
        super().on_response_complete()
        if self.transport.is_closing() or self._is_idle() or not self._is_client_due():
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, unless a response is being sent, which then breaks off."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:  # more bytes than h11 keeps, of the first line, of the head, or of a body
            is_first_line = b"\n" not in self.conn.trailing_data[0]
            status = (
                400 if self.conn.our_state is h11.SEND_RESPONSE else 414 if is_first_line else 431
            )
        self._send(self._refuse(status, str(error or msg)))
        # A socket that is closed with unread data is reset, which can discard the response.
        self.transport.write_eof()
        self._linger_bytes = 0
        self._stop_waiting()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _is_client_due(self) -> bool:
        """Whether the client has to send what no application waits for."""
        has_refused = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        return has_refused or self.conn.their_state is h11.IDLE

    def _is_idle(self) -> bool:
        return self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _start_waiting(self) -> None:
        self._stop_waiting()
        seconds = self._limits.arrival_seconds
        if not self._has_room:
            seconds = min(seconds, SECONDS_WITHOUT_ROOM)
        deadline = self.loop.time() + seconds
        arrival = Arrival(deadline=deadline, has_room=self._has_room)
        state: dict[str, Any] = {**self.app_state, Arrival.key: arrival}
        self.app_state = state  # uvicorn gives each request a copy
        self._timer = self.loop.call_at(deadline, self._close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        """The time is up."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and not self._is_idle():
            self._send(self._refuse(408 if self._has_room else 503, ""))
        self.transport.close()

    def _time_answer(self, seconds: float) -> None:
        """Give the client so long to read what is written, or to be written."""
        self._stop_timing_answer()
        self._answer_timer = self.loop.call_later(seconds, self._abort_unread)

    def _stop_timing_answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _abort_unread(self) -> None:
        """Close the connection of a client that does not read its response in time."""
        is_late = not self.cycle.response_complete and self._limits.answer_seconds is not None
        if is_late or self.transport.get_write_buffer_size():
            self.transport.abort()

    def _send(self, refusal: Refusal) -> None:
        """Write a response that ends the connection, without its body where HEAD is answered."""
        status, headers, body = refusal
        head = h11.Response(
            status_code=status,
            headers=[
                *headers,
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
            reason=HTTPStatus(status).phrase.encode(),
        )
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        for event in (head, *([] if is_head else [h11.Data(data=body)]), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
