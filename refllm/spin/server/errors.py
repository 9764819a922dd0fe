"""What an error looks like: its status, and a body that each protocol's clients can read.

Spin's client never looks at the status. It reads the body as the JSON of an answer, and what its
reader says of a JSON string contains that string: so the body is one, `"invalid-input: no model"`.
OpenAI's clients read `{"error": {"message", "type", "param", "code"}}`; `code` is OpenAI's name of
the error where it has one, otherwise the interface's, which is always in `kind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from fastapi.responses import JSONResponse

from refllm.api import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.models import LIST_HINT, MODEL_NOT_FOUND
from refllm.spin.server.openai_keys import KeyRefused
from refllm.spin.server.worker import Busy, Closed, Restarting, Unavailable

__all__ = [
    "UNAVAILABLE",
    "Protocol",
    "error_response",
    "openai_error",
    "protocol_of",
    "refusal",
    "status_of",
    "unavailable",
]

Protocol: TypeAlias = Literal["spin", "openai"]

OPENAI_PREFIX = "/v1/"
RETRY_AFTER_SECONDS = "1"

UNAVAILABLE: Mapping[type[Unavailable], str] = {
    Busy: "the server has as many requests as it takes; send it again in a second",
    Closed: "the server is about to end; send the request to another",
    Restarting: "the server has failed and begins again; send the request again in a second",
}

# The kinds of OpenAI's errors, by status.
OPENAI_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    500: "server_error",
    503: "server_error",
}


def protocol_of(path: str) -> Protocol:
    """Whose clients ask for that path."""
    return "openai" if path.startswith(OPENAI_PREFIX) else "spin"


def error_response(path: str, error: LlmError | Unavailable) -> JSONResponse:
    """The answer of that error to a request for that path."""
    if isinstance(error, Unavailable):
        return unavailable(path, UNAVAILABLE[type(error)])
    status = status_of(error, protocol_of(path))
    param = error.key if isinstance(error, KeyRefused) else None
    # The command would list the models of the client's machine.
    route = "to see the models that are here: GET /v1/models"
    message = "\n".join(route if line == LIST_HINT else str(line) for line in error.args)
    return refusal(path, status, error.kind, message, code=error.code, param=param)


def unavailable(path: str, message: str) -> JSONResponse:
    """The answer to a request that is not taken now."""
    return refusal(path, 503, LlmRuntimeError.kind, message, retry_after=RETRY_AFTER_SECONDS)


def status_of(error: LlmError, protocol: Protocol) -> int:
    """The HTTP status of one of the interface's errors."""
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
        path: What was asked for.
        status: The HTTP status.
        kind: The interface's name of the error.
        message: What is wrong, and what to do.
        code: OpenAI's name of the error.
        param: The key that is at fault.
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
