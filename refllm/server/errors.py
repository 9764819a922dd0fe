"""What an error looks like: its status, and a body that each protocol's clients can read.

Spin's client never looks at the status. It reads the body as the JSON of an answer, and what its
reader says of a JSON string contains that string: so the body is one, `"invalid-input: no model"`.
OpenAI's clients read `{"error": {"message", "type", "param", "code"}}`; `code` is OpenAI's name of
the error where it has one, otherwise the interface's, which is always in `kind`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
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
    "protocol_of",
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
    Busy: "the server has as many requests as it takes; send it again in a second",
    Closed: "the server is about to end; send the request to another",
    Restarting: "the server has failed and begins again; send the request again in a second",
}

# What does over HTTP what a command does, or an option of the server.
FOR_CLIENTS: Mapping[str, str] = {
    r"refllm infer \S+ PROMPT": "POST /v1/completions or POST /infer",
    r"refllm embed \S+ TEXT": "POST /v1/embeddings or POST /embed",
    r"refllm models list": "GET /v1/models",
    r"--stand-ins, LocalEngine.*": "refllm serve --stand-ins",
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
    return refusal(path, status, error.kind, str(error), code=error.code, param=param)


def for_clients(error: LlmError, roots: Sequence[Path]) -> LlmError:
    """Return an error of the engine as clients of the server may read it.

    A model's file is named as it is within its root, and a command as what does the same over HTTP.
    Where a folder of the server is left out, the log gets the whole.

    Args:
        error: The engine's.
        roots: The folders that models are in.
    """
    if isinstance(error, KeyRefused):  # a route's own, of what the client sent
        return error
    whole = str(error)
    said = LOOKED_IN.sub("; looked in this server's folders of models", whole)
    said = _folders(roots).sub(lambda found: "" if found[0].endswith("/") else A_FOLDER, said)
    if said != whole:
        level = logging.INFO if isinstance(error, InvalidInput) else logging.WARNING
        logger.log(level, "refllm: %s", " ".join(whole.split("\n")))
    problem, *advice = said.split("\n")
    kinds = (InvalidInput, ModelNotSupported)
    kind = next((kind for kind in kinds if isinstance(error, kind)), LlmRuntimeError)
    return kind(problem, *map(_over_http, advice), code=error.code)


def _folders(roots: Sequence[Path]) -> re.Pattern[str]:
    """What finds a folder of the server in a text, with the slash where a file in it follows."""
    folders = [Path(refllm.__file__).parent, *roots]
    with contextlib.suppress(OSError):  # of a working directory that is gone
        folders.append(Path.cwd())
    with contextlib.suppress(RuntimeError):  # where no home is known
        folders.append(Path.home())
    spelled = {str(each) for folder in folders for each in (folder, *_absolute(folder))}
    longest_first = sorted(spelled - {"/", "."}, key=lambda text: (-len(text), text))
    either = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![\w./-])(?:{either})(?:/+|(?![\w.-]))")


def _absolute(folder: Path) -> Iterator[Path]:
    """The folder as an absolute path, with its links and without."""
    with contextlib.suppress(OSError, RuntimeError):
        yield folder.absolute()
        yield folder.resolve()


def _over_http(advice: str) -> str:
    """Advice that names a command, as a client of the server can follow it."""
    for command, instead in FOR_CLIENTS.items():
        advice = re.sub(command, instead, advice)
    return advice


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
