"""The same example for spin-sdk 5, on its world with WASI 0.2, which has no simpler handler."""

from componentize_py_types import Ok
from spin_sdk import llm
from spin_sdk.wit.exports import WasiHttpIncomingHandler020
from spin_sdk.wit.imports.wasi_http_types_0_2_0 import (
    Fields,
    IncomingRequest,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)


class WasiHttpIncomingHandler020(WasiHttpIncomingHandler020):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        result = llm.infer("llama2-chat", "You are a stand up comedy writer. Tell me a joke.")
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            stream.blocking_write_and_flush(bytes(result.text, "utf-8"))
        OutgoingBody.finish(body, None)
