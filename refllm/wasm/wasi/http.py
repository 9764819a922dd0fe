"""`wasi:http/types` for a handler: an incoming request and an outgoing response.

Functions for requests to other servers (`outgoing-request` and so on) are not offered: refllm gives
guests no network.

Source: https://github.com/WebAssembly/wasi-http (0.2), wit/types.wit.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from wasmtime.component import Variant

from refllm.wasm.guest import Allowance, Guest, GuestFailed
from refllm.wasm.wasi.io import InputStream, OutputStream, Pollable
from refllm.wasm.wit import Interface, Resource

__all__ = [
    "CONNECTION_HEADERS",
    "METHODS",
    "BegunResponse",
    "HttpTypes",
    "IncomingRequest",
    "OutgoingResponse",
    "Request",
    "Response",
    "ResponseOutparam",
]

Headers = list[tuple[str, bytes]]

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
NOT_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
CONNECTION_HEADERS = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
"""Headers of the connection, which the server sets; a guest neither sees nor sets them."""

HEADER_BYTES = 128  # about what Python's objects for a header take, besides its text

OK = Variant("ok")
ERR = Variant("err")


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request; `target` is the path with the query, header names are lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""
    authority: str = "localhost"


@dataclass(frozen=True, slots=True)
class Response:
    """A guest's whole response."""

    status: int
    headers: tuple[tuple[str, bytes], ...]
    body: bytes


class Fields(Resource):
    """Headers or trailers, in order; names are compared in any case.

    A change returns None where it was made, and otherwise the error `header-error`.
    """

    wit = "fields"

    def __init__(self, allowance: Allowance, headers: Headers, *, immutable: bool = False) -> None:
        self._allowance = allowance
        self._immutable = immutable
        self.headers = headers

    def entries(self) -> Headers:
        return list(self.headers)

    def get(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def has(self, name: str) -> bool:
        return bool(self.get(name))

    def clone(self) -> Fields:
        self._allowance.spend(_size(self.headers))
        return Fields(self._allowance, list(self.headers))

    def append(self, name: str, value: bytes) -> Variant | None:
        return self._changed([*self.headers, (name, value)], [(name, value)])

    def set(self, name: str, values: list[bytes]) -> Variant | None:
        new = [(name, value) for value in values]
        return self._changed([*self._without(name), *new], new or [(name, b"")])

    def delete(self, name: str) -> Variant | None:
        return self._changed(self._without(name), [(name, b"")])

    def _without(self, name: str) -> Headers:
        return [header for header in self.headers if header[0].lower() != name.lower()]

    def _changed(self, headers: Headers, new: Headers) -> Variant | None:
        if self._immutable:
            return Variant("immutable")
        error = header_error(new)
        if error is None:
            self._allowance.spend(_size(new))
            self.headers[:] = headers
        return error


class IncomingBody(Resource):
    """A request's body; it can be streamed once."""

    wit = "incoming-body"

    def __init__(self, guest: Guest, body: bytes) -> None:
        self._guest = guest
        self._body: bytes | None = body

    def stream(self) -> InputStream | None:
        if self._body is None:
            return None
        source, self._body = io.BytesIO(self._body), None
        return InputStream(self._guest, source)


class FutureTrailers(Resource):
    """Trailers of a body, known at once: there are none."""

    wit = "future-trailers"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def subscribe(self) -> Pollable:
        return Pollable(self._guest)

    def get(self) -> Variant:
        return Variant("ok", None)


class IncomingRequest(Resource):
    """The request; its body can be consumed once."""

    wit = "incoming-request"

    def __init__(self, guest: Guest, request: Request) -> None:
        self._guest = guest
        self._request = request
        self._is_consumed = False

    def method(self) -> Variant:
        method = self._request.method
        return Variant(method.lower()) if method in METHODS else Variant("other", method)

    def path_with_query(self) -> str:
        return self._request.target

    def scheme(self) -> Variant:
        return Variant("HTTP")

    def authority(self) -> str:
        return self._request.authority

    def headers(self) -> Fields:
        return Fields(self._guest.allowance, list(self._request.headers), immutable=True)

    def consume(self) -> IncomingBody | None:
        if self._is_consumed:
            return None
        self._is_consumed = True
        return IncomingBody(self._guest, self._request.body)


class OutgoingBody(Resource):
    """A response's body; it can be written to by one stream."""

    wit = "outgoing-body"

    def __init__(self, response: OutgoingResponse) -> None:
        self._response = response
        self._is_streamed = False

    def write(self) -> OutputStream | None:
        if self._is_streamed:
            return None
        self._is_streamed = True
        return OutputStream(self._response.guest, self._append)

    def _append(self, contents: bytes) -> None:
        self._response.guest.allowance.spend(len(contents))
        self._response.append(contents)


@dataclass
class BegunResponse:
    """A response whose body may still grow; `on_change` is called when it has."""

    fields: Headers
    status: int = 200
    data: bytearray = field(default_factory=bytearray)
    on_change: Callable[[], object] | None = None

    def append(self, contents: bytes) -> None:
        """Add to the body."""
        self.data += contents
        if self.on_change is not None:
            self.on_change()


class OutgoingResponse(BegunResponse, Resource):
    """The response as the guest builds it, at first with status 200 and an empty body."""

    wit = "outgoing-response"

    def __init__(self, guest: Guest, fields: Headers) -> None:
        super().__init__(fields)
        self.guest = guest
        self.has_body = False

    def status_code(self) -> int:
        return self.status

    def set_status_code(self, status: int) -> Variant:
        if not 200 <= status <= 599:
            return ERR
        self.status = status
        return OK

    def headers(self) -> Fields:
        return Fields(self.guest.allowance, self.fields, immutable=True)

    def body(self) -> OutgoingBody | None:
        if self.has_body:
            return None
        self.has_body = True
        return OutgoingBody(self)


class ResponseOutparam(Resource):
    """Where the guest puts its response, or the error for which there is none.

    Args:
        on_change: Is called, in the guest's thread, when the response is given and when it grows.

    Attributes:
        begun: The response, as soon as it is given; the guest may still write to its body.
    """

    wit = "response-outparam"

    def __init__(self, on_change: Callable[[], object] | None = None) -> None:
        self._on_change = on_change
        self._given: BegunResponse | Variant | None = None
        self.begun: BegunResponse | None = None

    def give(self, given: BegunResponse | Variant) -> None:
        self._given = given
        if isinstance(given, BegunResponse):
            self.begun = given
            given.on_change = self._on_change
            if self._on_change is not None:
                self._on_change()

    def response(self) -> Response:
        """Return the response, when the guest has returned.

        Raises:
            GuestFailed: The guest gave no response.
        """
        if self._given is None:
            raise GuestFailed("it returned without a response")
        if isinstance(self._given, Variant):
            text = f": {self._given.payload}" if isinstance(self._given.payload, str) else ""
            raise GuestFailed(f"it responded with the error {self._given.tag}{text}")
        given = self._given
        return Response(given.status, tuple(given.fields), bytes(given.data))


class HttpTypes(Interface):
    """`wasi:http/types`."""

    wit = "wasi:http/types"
    resources = (
        Fields,
        FutureTrailers,
        IncomingBody,
        IncomingRequest,
        OutgoingBody,
        OutgoingResponse,
        ResponseOutparam,
    )

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def new_fields(self) -> Fields:
        return Fields(self._guest.allowance, [])

    def fields_from_list(self, entries: Headers) -> Fields | Variant:
        error = header_error(entries)
        if error is not None:
            return error
        self._guest.allowance.spend(_size(entries))
        return Fields(self._guest.allowance, entries)

    def new_outgoing_response(self, headers: Fields) -> OutgoingResponse:
        return OutgoingResponse(self._guest, headers.headers)

    def incoming_body_finish(self, _body: IncomingBody) -> FutureTrailers:
        return FutureTrailers(self._guest)

    def outgoing_body_finish(self, _body: OutgoingBody, _trailers: Fields | None) -> None:
        """Trailers are accepted and not sent: the response has a content-length."""

    def response_outparam_set(
        self, param: ResponseOutparam, response: OutgoingResponse | Variant
    ) -> None:
        param.give(response)

    def http_error_code(self, _error: Resource) -> None:
        return None


def header_error(headers: Headers) -> Variant | None:
    """Return WIT's `header-error` if a guest may not set one of these headers, else None."""
    for name, value in headers:
        if not TOKEN.fullmatch(name) or NOT_IN_VALUES.search(value):
            return Variant("invalid-syntax")
        if name.lower() in CONNECTION_HEADERS:
            return Variant("forbidden")
    return None


def _size(headers: Headers) -> int:
    return sum(HEADER_BYTES + len(name) + len(value) for name, value in headers)
