"""An engine that asks another machine, over the protocol that Spin calls `remote_http`.

    engine = RemoteEngine("http://127.0.0.1:3000", auth_token="secret")
    engine.infer("llama2-chat", "Hello").text

Every failure of a server becomes one of the interface's errors. Its message has the URL, what
arrived, and what to do. Spin itself ignores the status; here one that is not 2xx is an error.
"""

from __future__ import annotations

import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from refllm.errors import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.interface import EmbeddingsResult, InferencingParams, InferencingResult
from refllm.spin.dialects import API_TYPES, WrongShapeError, as_json, parse_json
from refllm.spin.http_client import (
    KINDS,
    Limits,
    Response,
    as_one_line,
    check_server_url,
    exchange,
    parse_error_body,
)
from refllm.tokenizer.base import check_text

__all__ = ["RemoteEngine"]

MAX_ANSWER_BYTES = 128 * 1024 * 1024  # as Spin's host

Result = TypeVar("Result", InferencingResult, EmbeddingsResult)


class RemoteEngine:
    """Answers the interface's requests by asking a server; safe to use from several threads.

    A request is sent once, even if the connection fails: the server may have done its work before.
    A redirect is not followed, because the token must not go to another host.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_token: str = "",
        api_type: str = "default",
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        answer_limit: int = MAX_ANSWER_BYTES,
    ) -> None:
        """Create an engine that asks the server at `url`; nothing is sent yet.

        TLS trusts the system's authorities, or those in the file that the environment's
        SSL_CERT_FILE names.

        Args:
            url: The server's URL; its path does not count, as in Spin.
            auth_token: Sent as `authorization: bearer`.
            api_type: "default", the protocol of Spin's cloud-gpu proxy, or "open_ai".
            timeout: Seconds for a whole request.
            connect_timeout: Seconds to connect to each of the host's addresses.
            answer_limit: The longest answer, in bytes.

        Raises:
            InvalidInput: Naming the option that is wrong.
        """
        try:
            check_server_url(url, option="auth_token")
        except ValueError as error:
            raise InvalidInput(f"url {error}") from None
        if not (isinstance(auth_token, str) and auth_token.isascii() and auth_token.isprintable()):
            raise InvalidInput(
                "auth_token must be printable ASCII on one line; it is not shown here"
            )
        if api_type not in API_TYPES:
            raise InvalidInput(
                f"api_type must be one of {', '.join(API_TYPES)}; got {api_type!r:.80}"
            )
        for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not 0 < seconds <= threading.TIMEOUT_MAX:
                raise InvalidInput(f"{name} must be a number of seconds above 0, got {seconds!r}")
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
        """Return the server's continuation of `prompt`.

        Raises:
            InvalidInput: Before anything is sent, if the request is wrong; or if the server
                answers that it is.
            ModelNotSupported: If the server answers so.
            LlmRuntimeError: For every other failure.
        """
        params = params or InferencingParams()
        params.check()
        _check_text("model", model)
        _check_text("the prompt", prompt)
        api = API_TYPES[self.api_type]
        return self._ask(api.infer_path, api.infer_request(model, prompt, params), api.infer_result)

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        """Return the server's vectors for `texts`, one for each.

        Raises:
            LlmError: As `infer`.
        """
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
        response = exchange(
            "POST",
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
        wrong_shape = ""
        if 200 <= response.status < 300:
            try:
                return read(parse_json(response.body))
            except WrongShapeError as error:
                wrong_shape = f", but {error}"
        error_body = parse_error_body(response.body)
        kind = error_body.kind or LlmRuntimeError.kind
        message = self._shown(error_body.message or error_body.kind or "")
        target = f" (to {self._shown(response.location)})" if response.location else ""
        problem = f"POST {url} answered {response.status}{target}{wrong_shape}: {message}"
        raise KINDS[kind](problem, self._shown(_advice(kind, response)))

    def _shown(self, text: str) -> str:
        """Return what a message shows of a server's text: short, on one line, without the token."""
        if self._auth_token:
            text = text.replace(self._auth_token, "[auth_token]")
        return as_one_line(text)


ADVICE_BY_STATUS: Mapping[int, str] = {
    400: "change the request as the server says, or check api_type",
    401: "check auth_token",
    403: "check auth_token",
    404: "check url, api_type and the model's name",
    405: "check url and api_type",
    413: "ask for less: a shorter prompt, or fewer texts",
}
ADVICE_BY_KIND: Mapping[str, str] = {
    InvalidInput.kind: "change the request as the server says",
    ModelNotSupported.kind: "ask for a model that this server has",
}


def _advice(kind: str, response: Response) -> str:
    """Return what to do about a failure, which its status decides, else its kind."""
    if response.status in (429, 503):
        # The header has a date or a number of seconds.
        retry = response.retry_after
        unit = " seconds" if retry and retry.isdecimal() else ""
        return (
            f"the server is busy; ask again {'later' if retry is None else f'after {retry}'}{unit}"
        )
    if response.status in ADVICE_BY_STATUS:
        return ADVICE_BY_STATUS[response.status]
    if kind in ADVICE_BY_KIND:
        return ADVICE_BY_KIND[kind]
    if 300 <= response.status < 400:
        return "set url to where the server really is; the token is not sent on by a redirect"
    if response.status < 300:
        return "check that what listens at url speaks this api_type"
    return "look at the server's log"


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidInput(f"{name} must be text, got {type(text).__name__}")
    check_text(text)
