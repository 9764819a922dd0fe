"""What a request that no route takes gets to hear: what is wrong with it, and what to send."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from refllm.server.openai_keys import did_you_mean, shown_key
from refllm.server.openai_requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from refllm.server.pages import ROUTES
from refllm.server.routes_spin import EmbedRequest, InferRequest

__all__ = ["what_is_wrong", "wrong_method", "wrong_path"]

BODIES: Mapping[str, type[BaseModel]] = {
    "/infer": InferRequest,
    "/embed": EmbedRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingsRequest,
}
LONGEST_SHOWN = 200  # characters of a request in an error
LONGEST_PLACE = 20  # characters of a body that is no JSON
METHODS = {path: method for method, _, path in (route.partition(" ") for route in ROUTES)}
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ELSEWHERE: Mapping[str, str] = {
    "/api/chat": CHAT,
    "/api/generate": COMPLETIONS,
    "/api/embed": EMBEDDINGS,
    "/api/embeddings": EMBEDDINGS,
    "/api/tags": "/v1/models",
    "/completion": COMPLETIONS,
    "/embedding": EMBEDDINGS,
    "/generate": COMPLETIONS,
    "/generate_stream": COMPLETIONS,
    "/v1/responses": CHAT,
    "/v1/messages": CHAT,
    "/health": "/healthz",
    "/v1": "/v1/models",
}
"""Routes of Ollama, llama.cpp, TGI and others, and what does the same here."""
CLOSE = 0.8  # of difflib's ratio


def wrong_path(path: str) -> str:
    """Return what is wrong with a path that no route has."""
    shown = path if len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]}..."
    meant = _meant_path(path)
    instead = "" if meant is None else f"did you mean {METHODS[meant]} {meant}? "
    return f"there is no route {shown_key(shown)} here; {instead}GET / lists the routes"


def _meant_path(path: str) -> str | None:
    """The route that a path is a misspelling of, or whose work it asks for."""
    plain = re.sub(r"^(/v1)+(?=/v1/)", "", re.sub(r"/+", "/", path.lower()).rstrip("/"))
    for candidate in (plain, f"/v1{plain}", plain.removeprefix("/v1")):
        if candidate in METHODS:
            return candidate
        if candidate in ELSEWHERE:
            return ELSEWHERE[candidate]
    close = difflib.get_close_matches(plain, METHODS, n=1, cutoff=CLOSE)
    return close[0] if close else None


def wrong_method(method: str, path: str, allowed: str) -> str:
    """Return what is wrong with a method that a route does not take."""
    body = " with a JSON object as the body" if allowed == "POST" else ""
    return f"{path} takes {allowed}{body}, not {method}"


def what_is_wrong(error: RequestValidationError, path: str) -> tuple[str | None, str]:
    """Return the key that is wrong with a body, and what is wrong with it and what it must be.

    Args:
        error: What the validator found; the first of it counts.
        path: The route; what each key must be is its field's description.
    """
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return None, _not_json(str(error.body), first["loc"][-1], first.get("ctx", {}).get("error"))
    fields: Mapping[str, FieldInfo] = BODIES[path].model_fields if path in BODIES else {}
    key, must_be, place = "", "a JSON object", ""
    for part in first["loc"][1:]:
        if isinstance(part, int):
            if fields:
                required = (name for name, each in fields.items() if each.is_required())
                key, must_be = f"{key}[{part}]", f"an object with {' and '.join(required)}"
            else:
                place = f" at [{part}]"
            continue
        field = next((fields[n] for n in fields if part == (fields[n].alias or n)), None)
        if field is not None:
            key += f".{part}" if key else part
            must_be = field.description or "another value"
            fields = _fields_inside(field.annotation)
        elif first["type"] == "extra_forbidden":
            return shown_key(part), _unknown_key(part, key, fields)
    if first["type"] == "missing":
        missing = f"{key or 'the body'} is missing; it must be {must_be}"
        return key or None, missing + _other_route(error.body, path)
    shown = _as_json(first["input"])
    return key or None, f"{key or 'the body'} must be {must_be}; got {shown}{place}"


def _not_json(text: str, position: object, reason: object) -> str:
    """Return why a body is no JSON: where, and the mistake where it is a usual one."""
    at = position if isinstance(position, int) else 0
    place, before = text[at : at + LONGEST_PLACE], text[:at].rstrip()
    if not text.lstrip().startswith(("{", "[", '"')):
        begin = text[:LONGEST_PLACE]
        return f"the body is not JSON: it begins with {begin!r}; send a JSON object"
    if not place.strip():
        return f"the body is not JSON: it ends too early, after {text[-LONGEST_PLACE:]!r}"
    if (before.endswith(",") and place[0] in "}]") or re.match(r",\s*[}\]]", text[at:]):
        reason = "a comma stands before the end of an object or list"
    elif place[0] == "'":
        reason = "texts and keys stand in double quotes"
    return f"the body is not JSON: {reason}, at character {at}: {place!r}"


def _unknown_key(part: str, inside: str, fields: Mapping[str, FieldInfo]) -> str:
    names = [each.alias or name for name, each in fields.items()]
    where = f"{inside}." if inside else ""
    meant = did_you_mean(part, names)
    for name, each in fields.items():
        deeper = _fields_inside(each.annotation)
        inner = [field.alias or each_name for each_name, field in deeper.items()]
        if not meant and did_you_mean(part, inner):
            meant = did_you_mean(part, inner).replace("did you mean ", f"did you mean {name}.")
    return (
        f"{where}{shown_key(part)} is not a key that is known here; {meant}"
        f"the keys are {', '.join(names)}"
    )


def _other_route(body: object, path: str) -> str:
    """Return which other route has a key that the body has and this route has not."""
    if not isinstance(body, Mapping) or path not in BODIES:
        return ""
    own = {each.alias or name for name, each in BODIES[path].model_fields.items()}
    for key in ("messages", "prompt", "input"):
        prefix = "/v1/" if path.startswith("/v1/") else ""
        for other, model in BODIES.items():
            if key in body and key not in own and key in model.model_fields and prefix in other:
                return f" ({key} is a key of POST {other})"
    unknown = [shown_key(key) for key in body if key not in own]
    return f" ({unknown[0]} is not a key that is known here)" if unknown else ""


def _as_json(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False, default=repr)
    except RecursionError:  # what could just be read cannot always be written
        return "what is nested too deeply to be shown"
    shown = shown if shown.isprintable() else ascii(shown)[1:-1]
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."


def _fields_inside(annotation: object) -> Mapping[str, FieldInfo]:
    """The fields of the object that a field may hold, as in `list[Part] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    inside = (_fields_inside(each) for each in get_args(annotation))
    return next((fields for fields in inside if fields), {})
