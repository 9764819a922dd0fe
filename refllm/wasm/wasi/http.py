"""`wasi:http/types`, as far as a handler needs it: a request comes in, a response goes out.

The functions for requests to others (`outgoing-request` and its kin) are not here: refllm lets no
guest into the network.

Source: https://github.com/WebAssembly/wasi-http (0.2), wit/types.wit.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

from wasmtime.component import Variant

from refllm.wasm.guest import Allowance, Guest, GuestFailed
from refllm.wasm.wasi.io import InputStream, OutputStream, Pollable
from refllm.wasm.wit import Interface, Resource

__all__ = [
    "METHODS",
    "OF_THE_CONNECTION",
    "HttpTypes",
    "IncomingRequest",
    "Request",
    "Response",
    "ResponseOutparam",
]

Headers = list[tuple[str, bytes]]

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
NOT_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
OF_THE_CONNECTION = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
"""Headers that are the server's business; a guest neither sees nor sets them."""

HEADER_BYTES = 128  # about what Python's objects for a header take, besides its text

OK = Variant("ok")
ERR = Variant("err")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for; `target` is the path with the query, header names are lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""
    authority: str = "localhost"


@dataclass(frozen=True, slots=True)
class Response:
    """What a guest responds, whole."""

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

    def __init__(self, guest: Guest, data: bytearray) -> None:
        self._guest = guest
        self._data = data
        self._is_streamed = False

    def write(self) -> OutputStream | None:
        if self._is_streamed:
            return None
        self._is_streamed = True
        return OutputStream(self._guest, self._append)

    def _append(self, contents: bytes) -> None:
        self._guest.allowance.spend(len(contents))
        self._data += contents


@dataclass
class OutgoingResponse(Resource):
    """The response as the guest makes it: status 200 and an empty body, until it says otherwise."""

    wit = "outgoing-response"

    guest: Guest
    fields: Headers
    status: int = 200
    data: bytearray = field(default_factory=bytearray)
    has_body: bool = False

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
        return OutgoingBody(self.guest, self.data)


class ResponseOutparam(Resource):
    """Where the guest puts its response, or the error for which there is none."""

    wit = "response-outparam"

    def __init__(self) -> None:
        self._given: OutgoingResponse | Variant | None = None

    def give(self, given: OutgoingResponse | Variant) -> None:
        self._given = given

    def response(self) -> Response:
        """The response, when the guest is done. Errors: `GuestFailed` where it gave none."""
        if self._given is None:
            raise GuestFailed("it returned without a response")
        if isinstance(self._given, Variant):
            said = f": {self._given.payload}" if isinstance(self._given.payload, str) else ""
            raise GuestFailed(f"it responded with the error {self._given.tag}{said}")
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
    """WIT's `header-error` where a guest may not set one of these; None where it may."""
    for name, value in headers:
        if not TOKEN.fullmatch(name) or NOT_IN_VALUES.search(value):
            return Variant("invalid-syntax")
        if name.lower() in OF_THE_CONNECTION:
            return Variant("forbidden")
    return None


def _size(headers: Headers) -> int:
    return sum(HEADER_BYTES + len(name) + len(value) for name, value in headers)
