"""Error messages for requests that no route accepts: what is wrong, and what to send instead."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from refllm.server.openai_keys import did_you_mean, shown_key
from refllm.server.openai_requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from refllm.server.pages import ROUTES
from refllm.server.routes_spin import EmbedRequest, InferRequest

__all__ = ["ELSEWHERE", "METHODS", "what_is_wrong", "wrong_method", "wrong_path"]

BODIES: Mapping[str, type[BaseModel]] = {
    "/infer": InferRequest,
    "/embed": EmbedRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingsRequest,
}
MAX_SHOWN = 200  # characters of a request in an error
MAX_PLACE = 20  # characters of a body that is not JSON
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
"""Routes of Ollama, llama.cpp, TGI and other servers, with their equivalents here."""
CLOSE = 0.8  # of difflib's ratio


def wrong_path(path: str) -> str:
    """Return the message about a path that is no route."""
    meant = _meant_path(path)
    instead = "" if meant is None else f"did you mean {METHODS[meant]} {meant}? "
    return f"there is no route {shown_key(path)} here; {instead}GET / lists the routes"


def _meant_path(path: str) -> str | None:
    """Return the route of a misspelled path, or the equivalent of another server's path."""
    plain = re.sub(r"^(/v1)+(?=/v1/)", "", re.sub(r"/+", "/", path.lower()).rstrip("/"))
    for candidate in (plain, f"/v1{plain}", plain.removeprefix("/v1")):
        if candidate in METHODS:
            return candidate
        if candidate in ELSEWHERE:
            return ELSEWHERE[candidate]
    close = difflib.get_close_matches(plain, METHODS, n=1, cutoff=CLOSE)
    return close[0] if close else None


def wrong_method(method: str, path: str, allowed: str) -> str:
    """Return the message about a method that a route does not accept."""
    body = " with a JSON object as the body" if allowed == "POST" else ""
    return f"{path} takes {allowed}{body}, not {method}"


def what_is_wrong(error: RequestValidationError, path: str) -> tuple[str | None, str]:
    """Return the wrong key of a body, and the message with what it must be.

    Args:
        error: The validator's errors; the first counts.
        path: The route; its fields' descriptions are what their values must be.
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
    try:
        given = json.dumps(first["input"], ensure_ascii=False, default=repr)
        shown = shown_key(given, MAX_SHOWN)
    except RecursionError:  # the parser's limit is higher than the writer's
        shown = "a value that is nested too deeply to be shown"
    return key or None, f"{key or 'the body'} must be {must_be}; got {shown}{place}"


def _not_json(text: str, position: object, reason: object) -> str:
    """Return the message about a body that is not JSON: the place, and the usual mistakes."""
    at = position if isinstance(position, int) else 0
    place, before = text[at : at + MAX_PLACE], text[:at].rstrip()
    if not text.lstrip().startswith(("{", "[", '"')):
        begin = text[:MAX_PLACE]
        return f"the body is not JSON: it begins with {begin!r}; send a JSON object"
    if not place.strip():
        return f"the body is not JSON: it ends too early, after {text[-MAX_PLACE:]!r}"
    if (before.endswith(",") and place[0] in "}]") or re.match(r",\s*[}\]]", text[at:]):
        reason = "remove the comma before the end of an object or list"
    elif place[0] == "'":
        reason = "write texts and keys in double quotes"
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
    return f"{where}{shown_key(part)} is an unknown key; {meant}the keys are {', '.join(names)}"


def _other_route(body: object, path: str) -> str:
    """Return a note about a key of the body that another route has and this one has not."""
    if not isinstance(body, Mapping) or path not in BODIES:
        return ""
    own = {each.alias or name for name, each in BODIES[path].model_fields.items()}
    for key in ("messages", "prompt", "input"):
        prefix = "/v1/" if path.startswith("/v1/") else ""
        for other, model in BODIES.items():
            if key in body and key not in own and key in model.model_fields and prefix in other:
                return f" ({key} is a key of POST {other})"
    unknown = [shown_key(key) for key in body if key not in own]
    return f" ({unknown[0]} is an unknown key)" if unknown else ""


def _fields_inside(annotation: object) -> Mapping[str, FieldInfo]:
    """Return the fields of the model in an annotation such as `list[Part] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    inside = (_fields_inside(each) for each in get_args(annotation))
    return next((fields for fields in inside if fields), {})
