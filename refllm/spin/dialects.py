"""The two dialects of Spin's `remote_http`: what is sent, and how an answer is read.

    default   POST /infer   {"model", "prompt", "options": {"maxTokens", ...}}
              POST /embed   {"model", "input": [...]}
    open_ai   POST /v1/chat/completions   {"messages", "model", "max_completion_tokens", ...}
              POST /v1/embeddings         {"input": [...], "model"}

Keys of an answer beyond those of the interface are ignored; the keys that are read must have the
interface's types. Source: Spin's crate llm-remote-http.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

from refllm.interface import (
    U32_MAX,
    EmbeddingsResult,
    EmbeddingsUsage,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
    as_f32,
)

__all__ = ["API_TYPES", "ApiType", "WrongShapeError", "as_json", "parse_json"]

F32_MAX = (2 - 2**-23) * 2.0**127


class WrongShapeError(ValueError):
    """The answer is not what the dialect says; the message is a clause about "it"."""


def as_json(value: object) -> bytes:
    """Return `value` as Spin writes it: UTF-8, without spaces between.

    Example:
        >>> as_json({"model": "m", "input": ["ä"]}).decode()
        '{"model":"m","input":["ä"]}'
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def parse_json(body: bytes) -> object:
    """Return the JSON value that `body` is.

    Raises:
        WrongShapeError: Where it is not JSON; NaN and infinities are none.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        return json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise WrongShapeError("it is not JSON") from None  # the cause would quote the server


class ApiType(Protocol):
    """A dialect: its two paths, its headers, its requests, and how its answers are read.

    The readers raise `WrongShapeError`.
    """

    infer_path: str
    embed_path: str
    headers: Mapping[str, str]

    def infer_request(self, model: str, prompt: str, params: InferencingParams) -> object:
        """Return the body that asks for a continuation of `prompt`."""

    def embed_request(self, model: str, texts: Sequence[str]) -> object:
        """Return the body that asks for the vectors of `texts`."""

    def infer_result(self, answer: object) -> InferencingResult:
        """Return the result that is in the JSON of an answer."""

    def embed_result(self, answer: object, n_texts: int) -> EmbeddingsResult:
        """Return the result that is in the JSON of an answer, which must have `n_texts` vectors."""


class _Default:
    """What the proxy of Spin's cloud-gpu speaks."""

    infer_path = "/infer"
    embed_path = "/embed"
    headers: Mapping[str, str] = {}

    def infer_request(self, model: str, prompt: str, params: InferencingParams) -> object:
        options = {
            "maxTokens": params.max_tokens,
            "repeatPenalty": as_f32(params.repeat_penalty),
            "repeatPenaltyLastNTokenCount": params.repeat_penalty_last_n_token_count,
            "temperature": as_f32(params.temperature),
            "topK": params.top_k,
            "topP": as_f32(params.top_p),
        }
        return {"model": model, "prompt": prompt, "options": options}

    def embed_request(self, model: str, texts: Sequence[str]) -> object:
        return {"model": model, "input": list(texts)}

    def infer_result(self, answer: object) -> InferencingResult:
        usage = InferencingUsage(
            _count(answer, "usage", "promptTokenCount"),
            _count(answer, "usage", "generatedTokenCount"),
        )
        return InferencingResult(_text(answer, "text"), usage)

    def embed_result(self, answer: object, n_texts: int) -> EmbeddingsResult:
        vectors = _vectors(_list(answer, "embeddings"), n_texts)
        usage = EmbeddingsUsage(_count(answer, "usage", "promptTokenCount"))
        flags = answer.get("truncated") if isinstance(answer, dict) else None
        return EmbeddingsResult(vectors, usage, _truncated(flags, n_texts))


class _OpenAi:
    """OpenAI's protocol, as far as Spin uses it."""

    infer_path = "/v1/chat/completions"
    embed_path = "/v1/embeddings"
    # Spin sends it in this dialect alone, and servers of it refuse a body without.
    headers: Mapping[str, str] = {"content-type": "application/json"}

    def infer_request(self, model: str, prompt: str, params: InferencingParams) -> object:
        return {
            "messages": [{"role": "user", "content": prompt}],
            "model": model,
            "max_completion_tokens": params.max_tokens,
            # Not the same as a repeat penalty, but Spin sends one as the other.
            "frequency_penalty": as_f32(params.repeat_penalty),
        }

    def embed_request(self, model: str, texts: Sequence[str]) -> object:
        return {"input": list(texts), "model": model}

    def infer_result(self, answer: object) -> InferencingResult:
        usage = InferencingUsage(
            _count(answer, "usage", "prompt_tokens"),
            _count(answer, "usage", "completion_tokens"),
        )
        return InferencingResult(_text(answer, "choices", 0, "message", "content"), usage)

    def embed_result(self, answer: object, n_texts: int) -> EmbeddingsResult:
        vectors = [_at(item, "embedding") for item in _list(answer, "data")]
        usage = EmbeddingsUsage(_count(answer, "usage", "prompt_tokens"))
        items = [item for item in _list(answer, "data") if isinstance(item, dict)]
        flags = [item["truncated"] for item in items if "truncated" in item]
        return EmbeddingsResult(_vectors(vectors, n_texts), usage, _truncated(flags, n_texts))


API_TYPES: Mapping[str, ApiType] = {"default": _Default(), "open_ai": _OpenAi()}
"""The dialects by their name in Spin's runtime configuration."""


# --- Reading -------------------------------------------------------------------------------------


def _truncated(flags: object, n_texts: int) -> tuple[bool, ...]:
    """Return whether each text was cut, as refllm's server answers; () for any other answer."""
    if not isinstance(flags, list) or len(flags) != n_texts:
        return ()
    booleans = tuple(flag for flag in flags if isinstance(flag, bool))
    return booleans if len(booleans) == n_texts else ()


def _at(value: object, *path: str | int) -> object:
    """Return the value at `path` inside `value`."""
    found: Any = value
    for depth, step in enumerate(path, start=1):
        try:
            found = found[step]
        except (LookupError, TypeError):
            raise WrongShapeError(f"{_shown(path[:depth])} is missing") from None
    return found


def _shown(path: Sequence[str | int]) -> str:
    return "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in path)[1:]


def _text(answer: object, *path: str | int) -> str:
    text = _at(answer, *path)
    if not isinstance(text, str):
        raise WrongShapeError(f"{_shown(path)} is not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise WrongShapeError(f"{_shown(path)} has half of a surrogate pair") from None
    return text


def _count(answer: object, *path: str | int) -> int:
    count = _at(answer, *path)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= U32_MAX:
        raise WrongShapeError(f"{_shown(path)} is not a whole number from 0 to {U32_MAX}")
    return count


def _list(answer: object, *path: str | int) -> list[object]:
    items = _at(answer, *path)
    if not isinstance(items, list):
        raise WrongShapeError(f"{_shown(path)} is not a list")
    return items


def _vectors(items: Sequence[object], n_texts: int) -> list[list[float]]:
    """Return one vector for each text, every value a float32."""
    vectors: list[list[float]] = []
    for place, item in enumerate(items):
        if (
            not isinstance(item, list)
            or not item
            or not all(
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and -F32_MAX <= value <= F32_MAX
                for value in item
            )
        ):
            raise WrongShapeError(f"vector {place} is not a list of float32 numbers")
        vectors.append([as_f32(value) for value in item])
    if len(vectors) != n_texts:
        raise WrongShapeError(f"it has {len(vectors)} vectors for {n_texts} texts")
    for place, vector in enumerate(vectors):
        if len(vector) != len(vectors[0]):
            raise WrongShapeError(
                f"vector {place} has {len(vector)} numbers, and vector 0 has {len(vectors[0])}"
            )
    return vectors
