"""An engine that asks another machine, over the protocol that Spin calls `remote_http`.

    engine = RemoteEngine("http://127.0.0.1:3000", auth_token="secret")
    engine.infer("llama2-chat", "Hello").text

Whatever a server does comes out as one of the interface's errors, which names the URL, what came
and what to do. Spin itself looks at no status; here one that is not 2xx is an error.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.interface import EmbeddingsResult, InferencingParams, InferencingResult
from refllm.spin.dialects import API_TYPES, WrongShapeError, as_json, parsed
from refllm.spin.http_client import PORTS, Answer, Limits, post
from refllm.tokenizer.base import check_text

__all__ = ["RemoteEngine"]

ANSWER_LIMIT_BYTES = 128 * 1024 * 1024  # what Spin's host takes from an engine at most
LONGEST_SHOWN = 200  # characters of what a server sent, in a message of ours
KINDS: Mapping[str, type[LlmError]] = {
    error.kind: error for error in (InvalidInput, ModelNotSupported, LlmRuntimeError)
}
DEFAULT_KIND = LlmRuntimeError.kind  # of an error that names none of the interface's

Result = TypeVar("Result", InferencingResult, EmbeddingsResult)


class RemoteEngine:
    """Answers the interface's requests by asking a server; safe to use from several threads.

    A request is sent once, whatever becomes of it, because a server may have done its work before
    a connection fails. A redirect is not followed, because the token must not go to another host.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_token: str = "",
        api_type: str = "default",
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        answer_limit: int = ANSWER_LIMIT_BYTES,
    ) -> None:
        """An engine that asks the server at `url`, of which, as in Spin, the path does not count.

        `api_type` is "default", which the cloud-gpu proxy speaks, or "open_ai". `timeout` is in
        seconds for a whole request, `connect_timeout` for a connection to each of the host's
        addresses; `answer_limit` is in bytes. TLS trusts the system's authorities, or those in the
        file that the environment's SSL_CERT_FILE names. Errors: `InvalidInput` naming the option.
        """
        _check_url(url)
        _check_token(auth_token)
        if api_type not in API_TYPES:
            raise InvalidInput(
                f"api_type must be one of {', '.join(API_TYPES)}; got {api_type!r:.80}"
            )
        _check_seconds("timeout", timeout)
        _check_seconds("connect_timeout", connect_timeout)
        if answer_limit < 1:
            raise InvalidInput(f"answer_limit must be at least 1 byte, got {answer_limit}")
        self.url = urllib.parse.urljoin(url, "/")
        self.api_type = api_type
        self._auth_token = auth_token
        self._limits = Limits(timeout, connect_timeout, answer_limit)
        self._tls = ssl.create_default_context() if self.url.startswith("https:") else None

    def __repr__(self) -> str:
        return f"RemoteEngine({self.url!r}, api_type={self.api_type!r})"

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        """The server's continuation of `prompt`.

        Errors: `InvalidInput` before anything is sent, if the request itself is wrong, or if the
        server says that it is; `ModelNotSupported` if the server says so; `LlmRuntimeError` for
        all else.
        """
        params = params or InferencingParams()
        params.check()
        _check_text("model", model)
        _check_text("the prompt", prompt)
        api = API_TYPES[self.api_type]
        return self._ask(api.infer_path, api.infer_request(model, prompt, params), api.infer_result)

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        """The server's vectors for `texts`. Errors: as `infer`."""
        _check_text("model", model)
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise InvalidInput("texts must be a list of texts; put a single one in a list")
        texts = list(texts)
        for text in texts:
            _check_text("each of texts", text)
        api = API_TYPES[self.api_type]
        return self._ask(
            api.embed_path,
            api.embed_request(model, texts),
            lambda answer: api.embed_result(answer, len(texts)),
        )

    def _ask(self, path: str, request: object, read: Callable[[object], Result]) -> Result:
        url = urllib.parse.urljoin(self.url, path)
        answer = post(
            url,
            headers={
                "accept": "*/*",
                "authorization": f"bearer {self._auth_token}",
                **API_TYPES[self.api_type].headers,
            },
            body=as_json(request),
            limits=self._limits,
            tls=self._tls,
        )
        wrong = ""
        if 200 <= answer.status < 300:
            try:
                return read(parsed(answer.body))
            except WrongShapeError as error:
                wrong = f", but {error}"
        said = _said(answer.body)
        target = f" (to {self._shown(answer.location)})" if answer.location else ""
        problem = f"POST {url} answered {answer.status}{target}{wrong}: {self._shown(said.message)}"
        raise KINDS[said.kind](problem, self._shown(_mend(said.kind, answer)))

    def _shown(self, text: str) -> str:
        """Of a server's `text` what fits in a message: short, on one line, without the token."""
        if self._auth_token:
            text = text.replace(self._auth_token, "[auth_token]")
        line = " ".join(text.split())
        return "".join(c if c.isprintable() else "?" for c in line[:LONGEST_SHOWN]) or "nothing"


# Errors that servers report


@dataclass(frozen=True, slots=True)
class _Said:
    """What a server says of its failure; the kind is one of the interface's."""

    kind: str
    message: str


def _said(body: bytes) -> _Said:
    """The error that `body` reports, in one of these forms, or else all of it as text.

    {"error": {"message": …, "kind" or "type" or "code": …}}    OpenAI's, and refllm's for open_ai
    {"error": …}                                                other servers'
    "kind: message"                                             refllm's for default, a JSON string
    """
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _Said(DEFAULT_KIND, text)
    match value:
        case {"error": {"message": str(message)} as error}:
            named = [error.get(key) for key in ("kind", "type", "code")]
            return _Said(next((kind for kind in KINDS if kind in named), DEFAULT_KIND), message)
        case {"error": str(message)}:
            return _Said(DEFAULT_KIND, message)
        case str():
            kind, _, message = value.partition(": ")
            return _Said(kind, message or kind) if kind in KINDS else _Said(DEFAULT_KIND, value)
        case _:
            return _Said(DEFAULT_KIND, text)


MENDS_BY_STATUS: Mapping[int, str] = {
    400: "change the request as the server says, or check api_type",
    401: "check auth_token",
    403: "check auth_token",
    404: "check url, api_type and the model's name",
    405: "check url and api_type",
    413: "ask for less: a shorter prompt, or fewer texts",
}
MENDS_BY_KIND: Mapping[str, str] = {
    InvalidInput.kind: "change the request as the server says",
    ModelNotSupported.kind: "ask for a model that this server has",
}


def _mend(kind: str, answer: Answer) -> str:
    """What to do about a failure."""
    if answer.status in (429, 503):
        return f"the server is busy; ask again {_when(answer.retry_after)}"
    if answer.status in MENDS_BY_STATUS:
        return MENDS_BY_STATUS[answer.status]
    if kind in MENDS_BY_KIND:
        return MENDS_BY_KIND[kind]
    if 300 <= answer.status < 400:
        return "set url to where the server really is; the token is not sent on by a redirect"
    if answer.status < 300:
        return "check that what listens at url speaks this api_type"
    return "look at the server's log"


def _when(retry_after: str | None) -> str:
    """The header Retry-After, which is a date or a number of seconds, in words."""
    if retry_after is None:
        return "later"
    return f"after {retry_after}{' seconds' if retry_after.isdecimal() else ''}"


# What a caller may give


def _check_url(url: str) -> None:
    """Raise `InvalidInput` unless `url` is that of a host; one with a password is not shown."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput("url must be printable ASCII without spaces; write a host as xn--…")
    try:
        parts = urllib.parse.urlsplit(url)
        is_host = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its other half
        is_host = False
    else:
        if "@" in parts.netloc:
            raise InvalidInput("url must not hold a name or password; the token is auth_token")
    if not is_host:
        raise InvalidInput("url must be http://HOST or https://HOST, with a :PORT if need be")


def _check_token(auth_token: str) -> None:
    is_header = isinstance(auth_token, str) and auth_token.isascii() and auth_token.isprintable()
    if not is_header:
        raise InvalidInput("auth_token must be printable ASCII on one line; it is not shown here")


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise InvalidInput(f"{name} must be a number of seconds above 0, got {seconds!r}")


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidInput(f"{name} must be text, got {type(text).__name__}")
    check_text(text)
