"""The Serverless AI example of Spin's documentation, for spin-sdk 3."""

from spin_sdk import http, llm
from spin_sdk.http import Request, Response


class IncomingHandler(http.IncomingHandler):
    def handle_request(self, request: Request) -> Response:
        result = llm.infer("llama2-chat", "You are a stand up comedy writer. Tell me a joke.")
        return Response(200, {"content-type": "text/plain"}, bytes(result.text, "utf-8"))
