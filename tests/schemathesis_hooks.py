"""What schemathesis is told beside the schema: names of models that are here."""

from __future__ import annotations

from typing import Any

import schemathesis

MODELS = {"/infer": "tiny-chat", "/embed": "tiny-embed", "/v1/embeddings": "tiny-embed"}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Half of the models that are invented are ones that are here: else nothing is computed."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 2:
        return {**body, "model": MODELS.get(context.operation.path, "tiny-chat")}
    return body
