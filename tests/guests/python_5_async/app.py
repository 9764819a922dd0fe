"""The same guest for spin-sdk 5, on the world with WASI 0.3 that it has by default."""

from call import answer
from spin_sdk import http, llm
from spin_sdk.http import Request, Response


class HttpHandler(http.Handler):
    async def handle_request(self, request: Request) -> Response:
        if request.method == "POST":
            return Response(200, {"content-type": "application/json"}, answer(request.body))
        result = llm.infer("llama2-chat", "You are a stand up comedy writer. Tell me a joke.")
        return Response(200, {"content-type": "text/plain"}, bytes(result.text, "utf-8"))
