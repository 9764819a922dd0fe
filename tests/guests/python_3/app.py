"""A guest for spin-sdk 3: GET is the example of Spin's documentation, POST makes one call."""

from call import answer
from spin_sdk import http, llm
from spin_sdk.http import Request, Response


class IncomingHandler(http.IncomingHandler):
    def handle_request(self, request: Request) -> Response:
        if request.method == "POST":
            return Response(200, {"content-type": "application/json"}, answer(request.body))
        result = llm.infer("llama2-chat", "You are a stand up comedy writer. Tell me a joke.")
        return Response(200, {"content-type": "text/plain"}, bytes(result.text, "utf-8"))
