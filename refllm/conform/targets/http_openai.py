"""The suite's questions as OpenAI's clients ask them: completions of raw prompts, embeddings.

The protocol has no top_k and no repeat penalty, so only greedy texts without a penalty are asked.
Two words switch the penalty off: `frequency_penalty` 0 is OpenAI's, `repeat_penalty` 1 is that of
servers of local models, some of which have it on by themselves.

Source: OpenAI's API reference.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np

from refllm.conform.case import Json
from refllm.conform.reply import NotApplicable
from refllm.conform.targets.http_dialect import Asked, counts, has_penalty, of_type, params_of

__all__ = ["OpenAiDialect"]

HEADERS = {"content-type": "application/json"}
# Of a vector in base64: 65,536 numbers. The suite's have 384.
LONGEST_VECTOR = 65536 * 4 * 4 // 3
USAGE = {
    "prompt_tokens": "prompt_token_count",
    "completion_tokens": "generated_token_count",
}


class OpenAiDialect:
    """POST /v1/completions and POST /v1/embeddings."""

    name = "openai"

    def text(self, asked: Json, model: str) -> Asked | NotApplicable:
        """A prompt to be continued. `NotApplicable`: whatever is drawn, or has a penalty."""
        params = params_of(asked)
        if isinstance(params, NotApplicable):
            return params
        if params.max_tokens > 0 and params.temperature > 0:
            return NotApplicable("the protocol has no top_k, so only greedy texts are asked")
        if params.max_tokens > 0 and has_penalty(params):
            return NotApplicable(
                "the protocol has no repeat_penalty, so only texts without are asked"
            )
        body = {
            "model": model,
            "prompt": asked["prompt"],
            "max_tokens": params.max_tokens,
            "temperature": 0.0,
            "seed": 0,
            "frequency_penalty": 0,
            "repeat_penalty": 1.0,
        }
        return Asked("/v1/completions", HEADERS, body)

    def embeddings(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Texts to be embedded. `NotApplicable`: with a limit, and no texts at all."""
        if not asked["texts"]:
            return NotApplicable("OpenAI's protocol refuses an empty list")
        if asked.get("max_tokens") is not None:
            return NotApplicable("the protocol carries no max_tokens for embeddings")
        body = {"model": model, "input": list(asked["texts"]), "encoding_format": "float"}
        return Asked("/v1/embeddings", HEADERS, body)

    def result(self, value: Any) -> dict[str, Any]:
        """What there is of a result in an answer's JSON, of a chat as of a completion."""
        found = counts(value, USAGE)
        choice = _first(value, "choices")
        found |= of_type(str, choice, "text")
        message = of_type(str, choice.get("message"), "content")
        if "content" in message:
            found["text"] = message["content"]
        data = value.get("data") if isinstance(value, dict) else None
        if isinstance(data, list):
            found |= _embeddings([_of(item, "embedding") for item in data])
        return found

    def streamed(self, events: Sequence[Any]) -> dict[str, Any]:
        """What there is of a result in the parts of a stream."""
        found: dict[str, Any] = {}
        pieces: list[str] = []
        for event in events:
            choice = _first(event, "choices")
            part = {**of_type(str, choice, "text"), **of_type(str, choice.get("delta"), "content")}
            pieces += part.values()
            found |= counts(event, USAGE)
        return {"text": "".join(pieces), **found}


def _first(value: Any, name: str) -> dict[str, Any]:
    """The first object of a list, or an empty one."""
    items = _of(value, name)
    first = items[0] if isinstance(items, list) and items else None
    return first if isinstance(first, dict) else {}


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _embeddings(written: Sequence[Any]) -> dict[str, Any]:
    """The vectors, and how they were written; nothing where one is no vector."""
    if all(isinstance(vector, list) for vector in written):
        return {"embeddings": list(written), "encoding": "float"}
    try:
        vectors = [_from_base64(vector) for vector in written]
    except (ValueError, TypeError, binascii.Error):
        return {}
    return {"embeddings": vectors, "encoding": "base64"}


def _from_base64(written: Any) -> list[float]:
    if len(written) > LONGEST_VECTOR:
        raise ValueError("no model gives so long a vector")
    data = base64.b64decode(written, validate=True)
    values: list[float] = np.frombuffer(data, "<f4").astype(np.float64).tolist()
    return values
