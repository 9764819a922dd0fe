"""A guest for spin-sdk 5 and WASI 0.3 that does what its path says."""

import json
import os
import sys
import time
from pathlib import Path

import componentize_py_async_support
from componentize_py_types import Err
from spin_sdk import http, key_value, llm, variables
from spin_sdk.http import Request, Response, _trailers_future
from spin_sdk.wit import byte_stream
from spin_sdk.wit.imports import wasi_clocks_monotonic_clock_0_3_0
from spin_sdk.wit.imports.wasi_http_types_0_3_0 import Fields
from spin_sdk.wit.imports.wasi_http_types_0_3_0 import Request as WasiRequest
from spin_sdk.wit.imports.wasi_http_types_0_3_0 import Response as WasiResponse


class HttpHandler(http.Handler):
    async def handle(self, request: WasiRequest) -> WasiResponse:
        # The SDK catches every exception; this one is to leave the component.
        if request.get_path_with_query() == "/trap":
            print("about to trap", file=sys.stderr)
            raise RuntimeError("this guest traps")
        if request.get_path_with_query() == "/stream":
            return stream()
        return await super().handle(request)

    async def handle_request(self, request: Request) -> Response:
        path, _, query = request.uri.partition("?")
        body = json.dumps(await ACTIONS[path](request, query)).encode()
        return Response(200, {"content-type": "application/json"}, body)


def stream() -> WasiResponse:
    """Write the beginning of a response, and the rest an hour later."""
    tx, rx = byte_stream()

    async def write() -> None:
        with tx:
            await tx.write_all(b"one")
            await wasi_clocks_monotonic_clock_0_3_0.wait_for(3600 * 10**9)
            await tx.write_all(b"two")

    componentize_py_async_support.spawn(write())
    return WasiResponse.new(Fields(), rx, _trailers_future())[0]


async def infer(request: Request, query: str) -> object:
    try:
        answer = llm.infer(query, request.body.decode())
    except Err as error:
        value = error.value
        return [type(value).__name__, getattr(value, "value", None)]
    usage = answer.usage
    return [answer.text, usage.prompt_token_count, usage.generated_token_count]


async def embed(request: Request, query: str) -> object:
    answer = llm.generate_embeddings(query, json.loads(request.body))
    return [[list(vector) for vector in answer.embeddings], answer.usage.prompt_token_count]


async def echo(request: Request, _query: str) -> object:
    body = request.body.decode("latin-1")
    return {"method": request.method, "uri": request.uri, "headers": request.headers, "body": body}


async def loop(_request: Request, _query: str) -> object:
    print("looping", file=sys.stderr)
    while True:
        pass


async def sleep(_request: Request, query: str) -> object:
    print("sleeping", file=sys.stderr)
    begin = time.monotonic()
    time.sleep(float(query))
    return time.monotonic() - begin


async def memory(_request: Request, query: str) -> object:
    return len(bytearray(int(query)))


async def exit_(_request: Request, _query: str) -> object:
    os._exit(3)


async def open_store(_request: Request, _query: str) -> object:
    return str(await key_value.open_default())


async def outbound(_request: Request, _query: str) -> object:
    return (await http.send(Request("GET", "http://127.0.0.1:1/", {}, None))).status


async def environment(_request: Request, _query: str) -> object:
    return dict(os.environ)


async def variable(_request: Request, query: str) -> object:
    return await variables.get(query)


async def read_file(_request: Request, query: str) -> object:
    return Path(query).read_text()


async def list_folder(_request: Request, query: str) -> object:
    return sorted(path.name for path in Path(query).iterdir())


async def write_file(_request: Request, query: str) -> object:
    try:
        Path(query).write_text("changed")
    except OSError as error:
        return type(error).__name__ + ": " + str(error.strerror)
    return "written"


seen = []


async def remember(_request: Request, _query: str) -> object:
    seen.append(1)
    return len(seen)


async def say(_request: Request, query: str) -> object:
    print(query)
    print(query, file=sys.stderr)
    return None


ACTIONS = {
    "/echo": echo,
    "/embed": embed,
    "/environment": environment,
    "/exit": exit_,
    "/infer": infer,
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
