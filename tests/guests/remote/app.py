"""A guest for spin-sdk 3 that answers Spin's remote protocol with the models of its host."""

import json

from spin_sdk import http, llm
from spin_sdk.http import Request, Response
from spin_sdk.wit.types import Err

OPTIONS = {
    "maxTokens": "max_tokens",
    "repeatPenalty": "repeat_penalty",
    "repeatPenaltyLastNTokenCount": "repeat_penalty_last_n_token_count",
    "temperature": "temperature",
    "topK": "top_k",
    "topP": "top_p",
}
STATUSES = {"invalid-input": 400, "model-not-supported": 404, "runtime-error": 500}
KINDS = {
    "Error_InvalidInput": "invalid-input",
    "Error_ModelNotSupported": "model-not-supported",
    "Error_RuntimeError": "runtime-error",
}


class IncomingHandler(http.IncomingHandler):
    def handle_request(self, request: Request) -> Response:
        asked = json.loads(request.body)
        try:
            answer = infer(asked) if request.uri == "/infer" else embed(asked)
        except Err as error:
            kind = KINDS[type(error.value).__name__]
            message = getattr(error.value, "value", None)
            body = kind if message is None else f"{kind}: {message}"
            return as_json(STATUSES[kind], body)
        return as_json(200, answer)


def infer(asked: dict) -> dict:
    options = {OPTIONS[name]: value for name, value in asked["options"].items()}
    params = llm.InferencingParams(**options)
    result = llm.infer_with_options(asked["model"], asked["prompt"], params)
    usage = {
        "promptTokenCount": result.usage.prompt_token_count,
        "generatedTokenCount": result.usage.generated_token_count,
    }
    return {"text": result.text, "usage": usage}


def embed(asked: dict) -> dict:
    result = llm.generate_embeddings(asked["model"], asked["input"])
    usage = {"promptTokenCount": result.usage.prompt_token_count}
    return {"embeddings": result.embeddings, "usage": usage}


def as_json(status: int, value: object) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(value).encode())
