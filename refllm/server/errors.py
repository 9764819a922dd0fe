"""Errors over HTTP: the status, and a body that each protocol's clients can read.

Spin's client ignores the status. It parses the body as the JSON of an answer, and its parser's
error message quotes a JSON string: so the body is a string, `"invalid-input: no model"`.
OpenAI's clients read `{"error": {"message", "type", "param", "code"}}`; `code` is OpenAI's name of
the error where it has one, otherwise the interface's, which is always in `kind`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from fastapi.responses import JSONResponse

import refllm
from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.models.find import MODEL_NOT_FOUND
from refllm.server.openai_keys import KeyRefused
from refllm.server.worker import Busy, Closed, Restarting, Unavailable

__all__ = [
    "UNAVAILABLE",
    "Protocol",
    "error_response",
    "for_clients",
    "openai_error",
    "refusal",
    "status_of",
    "unavailable",
]

Protocol: TypeAlias = Literal["spin", "openai"]

logger = logging.getLogger("refllm")

OPENAI_PREFIX = "/v1/"
LOOKED_IN = re.compile(r"; looked in [^\n]*")
A_FOLDER = "a folder of this server"
RETRY_AFTER_SECONDS = "1"

UNAVAILABLE: Mapping[type[Unavailable], str] = {
    Busy: "too many queued requests; retry after 1 second",
    Closed: "the server is shutting down; send the request to another server",
    Restarting: "the server has failed and is restarting; retry after 1 second",
}

# The equivalents, over HTTP or as an option of the server, of commands in the engine's messages.
FOR_CLIENTS: Mapping[str, str] = {
    r"refllm infer \S+ PROMPT": "POST /v1/completions or POST /infer",
    r"refllm embed \S+ TEXT": "POST /v1/embeddings or POST /embed",
    r"refllm models list": "GET /v1/models",
    r"--stand-ins, LocalEngine.*": "refllm serve --stand-ins",
}

# OpenAI's types of errors, by status; every other status is an invalid_request_error.
OPENAI_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    500: "server_error",
    503: "server_error",
}


def protocol_of(path: str) -> Protocol:
    """Return the protocol whose clients request that path."""
    return "openai" if path.startswith(OPENAI_PREFIX) else "spin"


def error_response(path: str, error: LlmError | Unavailable) -> JSONResponse:
    """Return the answer to a request for that path which ended with that error."""
    if isinstance(error, Unavailable):
        return unavailable(path, UNAVAILABLE[type(error)])
    status = status_of(error, protocol_of(path))
    param = error.key if isinstance(error, KeyRefused) else None
    return refusal(path, status, error.kind, str(error), code=error.code, param=param)


def for_clients(error: LlmError, roots: Sequence[Path]) -> LlmError:
    """Return an error of the engine as clients of the server may read it.

    A model's file is named relative to its root, and a command is replaced by its equivalent over
    HTTP. Where a folder of the server is left out, the log has the full message.

    Args:
        error: The engine's error.
        roots: The folders of models.
    """
    if isinstance(error, KeyRefused):  # a route's own error, about the client's request
        return error
    original = str(error)
    message = LOOKED_IN.sub("; looked in this server's folders of models", original)
    message = _folders(roots).sub(lambda found: "" if found[0].endswith("/") else A_FOLDER, message)
    if message != original:
        level = logging.INFO if isinstance(error, InvalidInput) else logging.WARNING
        logger.log(level, "refllm: %s", " ".join(original.split("\n")))
    problem, *advice = message.split("\n")
    for command, instead in FOR_CLIENTS.items():
        advice = [re.sub(command, instead, line) for line in advice]
    kinds = (InvalidInput, ModelNotSupported)
    kind = next((kind for kind in kinds if isinstance(error, kind)), LlmRuntimeError)
    return kind(problem, *advice, code=error.code)


def _folders(roots: Sequence[Path]) -> re.Pattern[str]:
    """Return the pattern of a folder of the server, with the slash before a file in it."""
    folders = [Path(refllm.__file__).parent, *roots]
    with contextlib.suppress(OSError):  # the working directory is gone
        folders.append(Path.cwd())
    with contextlib.suppress(RuntimeError):  # there is no home directory
        folders.append(Path.home())
    spelled = set(map(str, folders))
    for folder in folders:
        with contextlib.suppress(OSError, RuntimeError):
            spelled.add(str(folder.absolute()))
            spelled.add(str(folder.resolve()))
    longest_first = sorted(spelled - {"/", "."}, key=lambda text: (-len(text), text))
    either = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![\w./-])(?:{either})(?:/+|(?![\w.-]))")


def unavailable(path: str, message: str) -> JSONResponse:
    """Return the answer to a request that the server does not accept now."""
    return refusal(path, 503, LlmRuntimeError.kind, message, retry_after=RETRY_AFTER_SECONDS)


def status_of(error: LlmError, protocol: Protocol) -> int:
    """Return the HTTP status of one of the interface's errors."""
    is_unknown_model = protocol == "openai" and error.code == MODEL_NOT_FOUND
    if is_unknown_model or isinstance(error, ModelNotSupported):
        return 404
    return 400 if isinstance(error, InvalidInput) else 500


def refusal(
    path: str,
    status: int,
    kind: str,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    retry_after: str | None = None,
) -> JSONResponse:
    """Return an error's answer, in the form that the clients of a path read.

    Args:
        path: The request's path.
        status: The HTTP status.
        kind: The interface's name of the error.
        message: What is wrong, and how to fix it.
        code: OpenAI's name of the error.
        param: The key that is wrong.
        retry_after: Seconds, for the header of that name.
    """
    headers = {} if retry_after is None else {"retry-after": retry_after}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body: object = f"{kind}: {message}"
    if protocol_of(path) == "openai":
        body = openai_error(status, kind, message, code=code, param=param)
    return JSONResponse(body, status_code=status, headers=headers)


def openai_error(
    status: int, kind: str, message: str, *, code: str | None = None, param: str | None = None
) -> Mapping[str, object]:
    """Return the body of an error for OpenAI's clients. Arguments as `refusal`'s."""
    error = {
        "message": message,
        "type": OPENAI_TYPES.get(status, "invalid_request_error"),
        "param": param,
        "code": code or kind,
        "kind": kind,
    }
    return {"error": error}
