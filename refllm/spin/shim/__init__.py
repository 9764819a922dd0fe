"""A stand-in for the Spin Python SDK: a handler runs in plain Python, with an engine behind it.

    with spin_sdk_backed_by(LocalEngine()):
        response = handle("app.py", Request("POST", "/", {}, b"I love it!"))

where `app.py` is a handler as Spin runs it, unchanged:

    from spin_sdk import http, llm

    class IncomingHandler(http.IncomingHandler):
        def handle_request(self, request):
            answer = llm.infer("llama2-chat", request.body.decode())
            return http.Response(200, {"content-type": "text/plain"}, answer.text.encode())

It has `spin_sdk.llm`, the handlers of `spin_sdk.http`, and the errors of `spin_sdk.wit`. What else
the SDK has can be imported, and says on use that it is not here. `python -m refllm.spin.shim`
answers one request from the command line.
"""

from __future__ import annotations

from refllm.spin.shim.handlers import handle
from refllm.spin.shim.install import spin_sdk_backed_by
from refllm.spin.shim.sdk import NotInShim, Request, Response
from refllm.spin.shim.wit import Err

__all__ = ["Err", "NotInShim", "Request", "Response", "handle", "spin_sdk_backed_by"]
