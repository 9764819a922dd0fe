"""Hooks of schemathesis: requests name models that the server has."""

from __future__ import annotations

from typing import Any

import schemathesis

PLAIN: dict[str, dict[str, Any]] = {
    "/infer": {"options": {"maxTokens": 3}},
    "/v1/completions": {"max_tokens": 3},
    "/v1/chat/completions": {
        "max_tokens": 3,
        "messages": [{"role": "user", "content": "Hello!"}],
    },
}
REQUIRED = {"model", "prompt", "messages", "input", "sentences"}
MODELS = {"/infer": "tiny-chat", "/embed": "tiny-embed", "/v1/embeddings": "tiny-embed"}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Let half of the bodies that are invented name a model that is here, and ask for few tokens.

    Half of those have no other key that the schema does not require: those are answered.
    """
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return body
    path = context.operation.path
    model = MODELS.get(path, "tiny-chat")
    match len(body["model"]) % 4:
        case 1:
            plain = {key: value for key, value in body.items() if key in REQUIRED}
            return {**plain, "model": model, **PLAIN.get(path, {})}
        case 3:
            return {**body, "model": model}
        case _:
            return body
