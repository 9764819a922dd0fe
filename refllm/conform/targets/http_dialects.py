"""The suite's questions in the two protocols over HTTP, and where their answers have what.

    spin     POST /infer            POST /embed            Spin's `remote_http`, api_type "default"
    openai   POST /v1/completions   POST /v1/embeddings    a completion has the prompt as it is

Spin's has no seed, no token ids, and no limit for a text. OpenAI's has no top_k and no repeat
penalty, so it is asked for greedy texts without a penalty only. Sources: Spin's crate
llm-remote-http; OpenAI's API reference.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from refllm.conform.case import Json, is_sampled
from refllm.conform.reply import NotApplicable
from refllm.interface import InferencingParams
from refllm.spin.dialects import API_TYPES

__all__ = ["Asked", "Dialect", "OpenAiDialect", "SpinDialect"]

SPIN = API_TYPES["default"]
SPIN_USAGE = {
    "promptTokenCount": "prompt_token_count",
    "generatedTokenCount": "generated_token_count",
}
SERVER_SEED = "0"  # refllm's server samples with it, unless it is started with another

OPENAI_HEADERS = {"content-type": "application/json"}
OPENAI_USAGE = {
    "prompt_tokens": "prompt_token_count",
    "completion_tokens": "generated_token_count",
}
# Characters of a vector in base64: 65,536 numbers. The suite's have 384.
MAX_VECTOR = 65536 * 4 * 4 // 3

NO_EMBEDDING_LIMIT = NotApplicable("the protocol carries no max_tokens for embeddings")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of the suite as a POST; the body is a value for JSON."""

    path: str
    headers: Mapping[str, str]
    body: object


class Dialect(Protocol):
    """How the suite's questions are written in a protocol, and how its answers are read.

    A result has the fields of the interface's result, as far as the answer has them with their
    types.
    """

    name: str

    def text(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Return the request for a case of the group `text`."""

    def embeddings(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Return the request for a case of the group `embeddings`."""

    def result(self, value: Any) -> dict[str, Any]:
        """Return the fields of a result that the JSON of an answer has."""


class SpinDialect:
    """`api_type = "default"`."""

    name = "spin"

    def text(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Return the request; `NotApplicable` for a text that is sampled with another seed."""
        params = _params_of(asked)
        if isinstance(params, NotApplicable):
            return params
        if is_sampled(asked["params"]) and asked["seed"] != SERVER_SEED:
            return NotApplicable(
                f"the protocol carries no seed, so only texts of seed {SERVER_SEED} are asked"
            )
        return Asked(SPIN.infer_path, {}, SPIN.infer_request(model, asked["prompt"], params))

    def embeddings(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Return the request; `NotApplicable` where texts have a limit."""
        if asked.get("max_tokens") is not None:
            return NO_EMBEDDING_LIMIT
        return Asked(SPIN.embed_path, {}, SPIN.embed_request(model, asked["texts"]))

    def result(self, value: Any) -> dict[str, Any]:
        """Return the fields of a result that the JSON of an answer has."""
        return {
            **_field(value, "text", str),
            **_field(value, "embeddings", list),
            **_usage(value, SPIN_USAGE),
        }


class OpenAiDialect:
    """POST /v1/completions and POST /v1/embeddings."""

    name = "openai"

    def text(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Return the request; `NotApplicable` for a text that is sampled or has a penalty."""
        params = _params_of(asked)
        if isinstance(params, NotApplicable):
            return params
        if params.max_tokens > 0 and params.temperature > 0:
            return NotApplicable("the protocol has no top_k, so only greedy texts are asked")
        has_penalty = params.repeat_penalty != 1 and params.repeat_penalty_last_n_token_count > 0
        if params.max_tokens > 0 and has_penalty:
            return NotApplicable(
                "the protocol has no repeat_penalty, so only texts without are asked"
            )
        body = {
            "model": model,
            "prompt": asked["prompt"],
            "max_tokens": params.max_tokens,
            "temperature": 0.0,
            "seed": 0,
            # Two keys switch the penalty off: OpenAI's, and that of servers of local models, some
            # of which have a penalty by default.
            "frequency_penalty": 0,
            "repeat_penalty": 1.0,
        }
        return Asked("/v1/completions", OPENAI_HEADERS, body)

    def embeddings(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Return the request; `NotApplicable` for no texts at all, and where they have a limit."""
        if not asked["texts"]:
            return NotApplicable("OpenAI's protocol refuses an empty list")
        if asked.get("max_tokens") is not None:
            return NO_EMBEDDING_LIMIT
        body = {"model": model, "input": list(asked["texts"]), "encoding_format": "float"}
        return Asked("/v1/embeddings", OPENAI_HEADERS, body)

    def result(self, value: Any) -> dict[str, Any]:
        """Return the fields of a result that the JSON of a completion, chat or embedding has."""
        choice = _first(value, "choices")
        found = {**_usage(value, OPENAI_USAGE), **_field(choice, "text", str)}
        content = _get(choice.get("message"), "content")
        if isinstance(content, str):
            found["text"] = content
        data = value.get("data") if isinstance(value, dict) else None
        if isinstance(data, list):
            found |= _embeddings([_get(item, "embedding") for item in data])
        return found

    def streamed(self, events: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a result that the events of a stream have together."""
        found: dict[str, Any] = {}
        pieces: list[str] = []
        for event in events:
            choice = _first(event, "choices")
            delta = _field(choice.get("delta"), "content", str)
            pieces += {**_field(choice, "text", str), **delta}.values()
            found |= _usage(event, OPENAI_USAGE)
        return {"text": "".join(pieces), **found}


def _params_of(asked: Json) -> InferencingParams | NotApplicable:
    """Return a case's parameters, defaults included; `NotApplicable` for numbers not in JSON."""
    given = asked.get("params") or {}
    if not all(math.isfinite(value) for value in given.values()):
        return NotApplicable("JSON has no NaN and no infinity")
    return InferencingParams(**given)


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _field(value: Any, name: str, wanted: type) -> dict[str, Any]:
    """Return the field `name` by its name if it has the type, else nothing."""
    found = _get(value, name)
    return {name: found} if isinstance(found, wanted) else {}


def _usage(value: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the interface's `usage`; `names` maps the protocol's counts to the interface's."""
    usage = _get(value, "usage")
    counts = {
        ours: usage[theirs] for theirs, ours in names.items() if type(_get(usage, theirs)) is int
    }
    return {"usage": counts} if counts else {}


def _first(value: Any, name: str) -> dict[str, Any]:
    """Return the first object of the list `name`, or an empty one."""
    items = _get(value, name)
    first = items[0] if isinstance(items, list) and items else None
    return first if isinstance(first, dict) else {}


def _embeddings(written: Sequence[Any]) -> dict[str, Any]:
    """Return the vectors and how they were written; nothing where one is no vector."""
    if all(isinstance(vector, list) for vector in written):
        return {"embeddings": list(written), "encoding": "float"}
    vectors: list[list[float]] = []
    try:
        for text in written:
            if len(text) > MAX_VECTOR:
                return {}
            data = base64.b64decode(text, validate=True)
            vectors.append(np.frombuffer(data, "<f4").astype(np.float64).tolist())
    except (ValueError, TypeError, binascii.Error):
        return {}
    return {"embeddings": vectors, "encoding": "base64"}
