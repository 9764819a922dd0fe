"""A client's connection: uvicorn's, with limits on how many there are and how slow one may be.

uvicorn ends a connection that is idle between two requests. It waits forever for the first, for the
rest of a head, for the rest of a body that has been refused already, and for a client that does not
read its answer.

Source: RFC 9110, 15.5.9 (408); RFC 9112, 9.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from refllm.server.limits import Limits
from refllm.server.middleware import Arrival, late, one_too_many

__all__ = ["connection_class"]

SECONDS_WITHOUT_ROOM = 2.0  # for a head to arrive that is answered with 503


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """What uvicorn makes of each connection."""

    class Connection(_Connection):
        _limits = limits

    return Connection


class _Connection(H11Protocol):
    """Tells the application when its request must be there, and ends what that never sees."""

    _limits: Limits
    _timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._has_room = len(self.connections) <= self._limits.max_connections
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._time_answer()

    def data_received(self, data: bytes) -> None:
        if self._timer is None and self.conn.their_state is h11.IDLE:
            self._start_waiting()
        super().data_received(data)
        if not self._is_client_due():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._start_waiting()  # the next request may be here, in part or whole
        super().on_response_complete()
        if self.transport.is_closing() or self._is_idle() or not self._is_client_due():
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless an answer is on its way; the request has none any more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD":
            # uvicorn sends a body, which an answer to HEAD does not have, and h11 refuses.
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        elif self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()

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
            has_room, seconds = self._has_room, self._limits.arrival_seconds
            self._send(late("/", seconds) if has_room else one_too_many("/"))
        self.transport.close()

    def _time_answer(self) -> None:
        """Give a request's answer its time, and the client as long to read it as to send."""
        if self._answer_timer is not None:
            self._answer_timer.cancel()
        seconds = self._limits.request_seconds + self._limits.arrival_seconds
        self._answer_timer = self.loop.call_later(seconds, self._abort_unread)

    def _abort_unread(self) -> None:
        """The answer's time is up; a client that reads nothing keeps no connection."""
        if not self.cycle.response_complete or self.transport.get_write_buffer_size():
            self.transport.abort()

    def _send(self, response: Response) -> None:
        status, headers = response.status_code, response.raw_headers
        reason = HTTPStatus(status).phrase.encode()
        head = h11.Response(status_code=status, headers=headers, reason=reason)
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
