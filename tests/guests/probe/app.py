"""A guest for spin-sdk 3 that does what its path says: what a host must survive, or must give."""

import json
import os
import sys
import time
from pathlib import Path

from spin_sdk import http, key_value, variables
from spin_sdk.http import IncomingRequest, Request, Response, ResponseOutparam
from spin_sdk.wit.imports.types import Fields, OutgoingBody, OutgoingResponse
from spin_sdk.wit.types import Ok


class IncomingHandler(http.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        # The SDK catches every exception; this one is to leave the component.
        if request.path_with_query() == "/trap":
            print("about to trap", file=sys.stderr)
            raise RuntimeError("this guest traps")
        if request.path_with_query() == "/silence":
            return
        if request.path_with_query() == "/stream":
            stream(response_out)
            return
        super().handle(request, response_out)

    def handle_request(self, request: Request) -> Response:
        path, _, query = request.uri.partition("?")
        return Response(200, {"content-type": "application/json"}, ACTIONS[path](request, query))


def stream(response_out: ResponseOutparam) -> None:
    """Write the beginning of a response, and the rest an hour later."""
    response = OutgoingResponse(Fields.from_list([]))
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    with body.write() as out:
        out.blocking_write_and_flush(b"one")
        time.sleep(3600)
        out.blocking_write_and_flush(b"two")
    OutgoingBody.finish(body, None)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def echo(request: Request, _query: str) -> bytes:
    body = request.body.decode("latin-1")
    seen = {"method": request.method, "uri": request.uri, "headers": request.headers, "body": body}
    return as_json(seen)


def loop(_request: Request, _query: str) -> bytes:
    print("looping", file=sys.stderr)
    while True:
        pass


def sleep(_request: Request, query: str) -> bytes:
    print("sleeping", file=sys.stderr)
    begin = time.monotonic()
    time.sleep(float(query))
    return as_json(time.monotonic() - begin)


def memory(_request: Request, query: str) -> bytes:
    return as_json(len(bytearray(int(query))))


def exit_(_request: Request, _query: str) -> bytes:
    os._exit(3)


def open_store(_request: Request, _query: str) -> bytes:
    return as_json(str(key_value.open_default()))


def outbound(_request: Request, _query: str) -> bytes:
    return as_json(http.send(Request("GET", "http://127.0.0.1:1/", {}, None)).status)


def environment(_request: Request, _query: str) -> bytes:
    return as_json(dict(os.environ))


def variable(_request: Request, query: str) -> bytes:
    return as_json(variables.get(query))


def read_file(_request: Request, query: str) -> bytes:
    return as_json(Path(query).read_text())


def list_folder(_request: Request, query: str) -> bytes:
    return as_json(sorted(path.name for path in Path(query).iterdir()))


def write_file(_request: Request, query: str) -> bytes:
    try:
        Path(query).write_text("changed")
    except OSError as error:
        return as_json(type(error).__name__ + ": " + str(error.strerror))
    return as_json("written")


seen = []


def remember(_request: Request, _query: str) -> bytes:
    seen.append(1)
    return as_json(len(seen))


def say(_request: Request, query: str) -> bytes:
    print(query)
    print(query, file=sys.stderr)
    return as_json(None)


ACTIONS = {
    "/echo": echo,
    "/environment": environment,
    "/exit": exit_,
    "/key-value": open_store,
    "/list": list_folder,
    "/loop": loop,
    "/memory": memory,
    "/outbound": outbound,
    "/read": read_file,
    "/remember": remember,
    "/say": say,
    "/sleep": sleep,
    "/variable": variable,
    "/write": write_file,
}
