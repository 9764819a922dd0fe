"""What an error looks like: its status, and a body that each protocol's clients can read.

Spin's client never looks at the status. It reads the body as the JSON of an answer, and what its
reader says of a JSON string contains that string: so the body is one, `"invalid-input: no model"`.
OpenAI's clients read `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from fastapi.responses import JSONResponse

from refllm.api import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.spin.server.worker import Busy, Closed, Restarting, Unavailable

__all__ = [
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
    404: "not_found_error",
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
    return refusal(path, status_of(error), error.kind, str(error))


def unavailable(path: str, message: str) -> JSONResponse:
    """The answer to a request that is not taken now."""
    return refusal(path, 503, LlmRuntimeError.kind, message, retry_after=RETRY_AFTER_SECONDS)


def status_of(error: LlmError) -> int:
    """The HTTP status of one of the interface's errors."""
    if isinstance(error, ModelNotSupported):
        return 404
    return 400 if isinstance(error, InvalidInput) else 500


def refusal(
    path: str, status: int, kind: str, message: str, *, retry_after: str | None = None
) -> JSONResponse:
    """An error's answer, in the form that the clients of that path read."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body: object = f"{kind}: {message}"
    if protocol_of(path) == "openai":
        body = openai_error(status, kind, message)
    return JSONResponse(body, status_code=status, headers=headers)


def openai_error(status: int, kind: str, message: str) -> Mapping[str, object]:
    """The body of an error for OpenAI's clients; `code` is the interface's name of it."""
    said = {"message": message, "type": OPENAI_TYPES[status], "param": None, "code": kind}
    return {"error": said}
