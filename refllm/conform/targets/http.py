"""A target behind a URL: `--protocol spin` or `--protocol openai`.

    target = HttpTarget("http://127.0.0.1:8177", protocol="spin", token="secret")

Groups that HTTP can carry are `text`, `embeddings` and `api`. A case of `api` is sent as its
spelling says; whatever comes back with a status is an answer to it, refusals too. What never comes,
comes too late, or is no JSON where it should be, is `Broken`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from refllm.conform.case import Case, Group
from refllm.conform.reply import (
    KINDS,
    Answer,
    Broken,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
    TargetError,
)
from refllm.conform.targets.http_dialect import Asked, Dialect
from refllm.conform.targets.http_exchange import (
    Address,
    ConnectionRefused,
    ExchangeError,
    Request,
    Response,
    exchange,
    is_listening,
)
from refllm.conform.targets.http_openai import OpenAiDialect
from refllm.conform.targets.http_spin import SpinDialect
from refllm.conform.wire import MOST_NESTED, is_nested_deeper
from refllm.spin.dialects import as_json

__all__ = ["HttpTarget", "Protocol"]

Protocol: TypeAlias = Literal["spin", "openai"]

GROUPS: frozenset[Group] = frozenset({"text", "embeddings", "api"})
BUSY = (429, 502, 503, 504)
REFUSED = (401, 403)
LONGEST_SHOWN = 200  # characters of what a server sent, in a message of ours
NEEDED: Mapping[str, Sequence[tuple[str, ...]]] = {
    "text": (
        ("text",),
        ("usage", "prompt_token_count"),
        ("usage", "generated_token_count"),
    ),
    "embeddings": (("embeddings",), ("usage", "prompt_token_count")),
}


class HttpTarget:
    """A server that speaks one of the protocols."""

    def __init__(
        self,
        url: str,
        *,
        protocol: Protocol,
        token: str | None = None,
        model_map: Mapping[str, str] | None = None,
        draws_as_refllm: bool = False,
        timeout_seconds: float = 60.0,
    ) -> None:
        """The server at `url`, of which, as in Spin, the path does not count.

        `model_map` has the server's names of the suite's models. `draws_as_refllm` says that it has
        refllm's random numbers, of seed 0. `timeout_seconds` are those of one request.
        """
        self._url = url
        self._dialect: Dialect = SpinDialect() if protocol == "spin" else OpenAiDialect()
        self._token = token
        self._model_map = model_map or {}
        self._draws_as_refllm = draws_as_refllm
        self._seconds = timeout_seconds
        self._address: Address
        self._ended_by: str | None = None  # the case after which nothing listens any more

    def start(self) -> Implementation:
        """See that a server is there and takes the token; what it answers does not matter.

        Errors: `TargetError` where there is none, or it wants another token.
        """
        try:
            self._address = Address.of(self._url)
        except ValueError as error:
            raise TargetError(f"{self._url!r} is no server's URL: {error}") from None
        request = Request("GET", "/v1/models", self._headers(), None)
        try:
            response = exchange(self._address, request, seconds=self._seconds)
        except ExchangeError as error:
            raise TargetError(str(error)) from error
        if response.status in REFUSED:
            said = "another token" if self._token else "a token"
            raise TargetError(f"the server at {self._address} wants {said}; give it with --token")
        return Implementation(
            name="the server",
            groups=GROUPS,
            draws_as_refllm=self._draws_as_refllm,
            details={"protocol": self._dialect.name, "url": str(self._address)},
        )

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why the protocol cannot ask the case, None where it can."""
        if case.group == "api":
            is_spelled = case.input["spellings"][self._dialect.name] is not None
            return None if is_spelled else NotApplicable(case.input["not_in"][self._dialect.name])
        asked = self._asked(case)
        return asked if isinstance(asked, NotApplicable) else None

    def run(self, case: Case) -> Reply:
        """Ask one case; `NotApplicable` where the protocol cannot."""
        not_applicable = self.not_applicable(case)
        if not_applicable is not None:
            return not_applicable
        try:
            reply = self._api(case) if case.group == "api" else self._group(case)
        except ConnectionRefused as error:
            return Broken(str(error), is_lost=True, because_of=self._ended_by)
        except ExchangeError as error:
            if is_listening(self._address, seconds=self._seconds):
                return Broken(str(error), is_lost=True)
            self._ended_by = case.id
            return Broken(
                f"the server ended when it was asked {case.id}: nothing listens at {self._address} "
                "any more; look at its log, since no request may end the process",
                is_lost=True,
            )
        self._ended_by = None
        return reply

    def stop(self) -> None:
        """Nothing is left open."""

    def _headers(self) -> dict[str, str]:
        headers = {"accept": "*/*"}
        if self._token:
            headers["authorization"] = f"bearer {self._token}"
        return headers

    # --- groups ---

    def _asked(self, case: Case) -> Asked | NotApplicable:
        name = case.input.get("model", "")
        model = self._model_map.get(name, name)
        if case.group == "text":
            return self._dialect.text(case.input, model)
        if case.group == "embeddings":
            return self._dialect.embeddings(case.input, model)
        return NotApplicable(f"HTTP carries no {case.group}; a harness can be asked it")

    def _group(self, case: Case) -> Reply:
        asked = self._asked(case)
        if isinstance(asked, NotApplicable):
            return asked
        response = self._post(asked)
        reply = self._reply(response)
        if not isinstance(reply, Answer):
            return reply
        if "error" in reply.result:
            kind = _kind_of_status(response.status)
            error = {"kind": kind, **reply.result["error"]}
            return Answer({"error": error}, len(response.body))
        for path in NEEDED[case.group]:
            if not _has(reply.result, path):
                return Broken(f"the answer of {asked.path} has no {'.'.join(path)}")
        return replace(reply, n_bytes=len(response.body))

    def _post(self, asked: Asked) -> Response:
        headers = {**self._headers(), **asked.headers}
        request = Request("POST", asked.path, headers, as_json(asked.body))
        return exchange(self._address, request, seconds=self._seconds)

    def _api(self, case: Case) -> Reply:
        spelling = case.input["spellings"][self._dialect.name]
        needs_token = bool(case.input.get("needs_token"))
        if needs_token and not self._token:
            return Skipped("the server asks for no token; start it with one, and give --token")
        body = None if spelling["body"] is None else self._with_names(spelling["body"]).encode()
        headers = {**self._headers(), **spelling["headers"]}
        request = Request(spelling["method"], spelling["path"], headers, body)
        response = exchange(self._address, request, seconds=self._seconds)
        reply = self._reply(response, may_refuse=needs_token)
        if not isinstance(reply, Answer):
            return reply
        protocol = {"protocol": self._dialect.name, "status": response.status}
        return Answer({**reply.result, **protocol}, len(response.body))

    def _with_names(self, body: str) -> str:
        """A body with the server's names of models in place of the suite's."""
        for name, other in self._model_map.items():
            body = body.replace(json.dumps(name), json.dumps(other))
        return body

    # --- answers ---

    def _reply(self, response: Response, *, may_refuse: bool = False) -> Reply:
        """What a response means: a result, a refusal, or nothing that is an answer."""
        if response.status in BUSY:
            return Broken(f"the server is busy, or not there: {response.status} {_shown(response)}")
        if response.status in REFUSED and not may_refuse:
            return Broken(f"the server refuses the token: {response.status}; check --token")
        if 300 <= response.status < 400:
            return Broken(f"the server is somewhere else: {response.status}; give its own URL")
        if not 200 <= response.status < 300:
            return Answer({"error": _said(response.body.decode("utf-8", "replace"))})
        if response.media_type == "text/event-stream" and isinstance(self._dialect, OpenAiDialect):
            return _streamed(self._dialect, response)
        try:
            value = json.loads(response.body.decode())
        except (ValueError, RecursionError):
            return Broken(f"the answer is no JSON: {_shown(response)}")
        if is_nested_deeper(value, MOST_NESTED):
            return Broken(f"the answer is nested more than {MOST_NESTED} deep: {_shown(response)}")
        if isinstance(value, str) or _is_refusal(value):
            return Answer({"error": _said(json.dumps(value))})
        return Answer(self._dialect.result(value))


def _streamed(dialect: OpenAiDialect, response: Response) -> Reply:
    """What a stream of events comes to; an error in it is a refusal, although the status is 200."""
    lines = response.body.decode("utf-8", "replace").splitlines()
    data = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    is_done = data[-1:] == ["[DONE]"]
    try:
        events = [json.loads(event) for event in data if event != "[DONE]"]
    except (ValueError, RecursionError):
        return Broken(f"an event of the stream is no JSON: {_shown(response)}")
    if is_nested_deeper(events, MOST_NESTED):
        return Broken(f"the stream is nested more than {MOST_NESTED} deep: {_shown(response)}")
    for event in events:
        if _is_refusal(event):
            return Answer({"error": _said(json.dumps(event))})
    return Answer({**dialect.streamed(events), "stream_ends": is_done})


def _is_refusal(value: object) -> bool:
    """Whether an answer reports an error; some servers say in every answer that there is none."""
    return isinstance(value, dict) and value.get("error") is not None


def _said(body: str) -> dict[str, Any]:
    """The error that a body reports, with the kind if it says one of the interface's.

    {"error": {"message": …, "code": kind}}   form "error object"
    {"error": …}, {"detail": …}               form "object"
    "kind: message", a JSON string            form "string"
    anything else                             form "text"
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _error(None, body, "text")
    if is_nested_deeper(value, MOST_NESTED):
        return _error(None, body, "text")
    match value:
        case {"error": {"message": str(message)} as error}:
            named = [error.get(key) for key in ("kind", "type", "code")]
            kind = next((kind for kind in KINDS if kind in named), None)
            return _error(kind, message, "error object")
        case {"error": said} | {"detail": said}:
            message = said if isinstance(said, str) else json.dumps(said)
            return _error(None, message, "object")
        case str():
            named_kind, _, message = value.partition(": ")
            if named_kind in KINDS:
                return _error(named_kind, message, "string")
            return _error(None, value, "string")
        case _:
            return _error(None, body, "object")


def _kind_of_status(status: int) -> str:
    """The interface's error that a status stands for, where the body names none."""
    if status == 404:
        return "model-not-supported"
    return "runtime-error" if status >= 500 else "invalid-input"


def _error(kind: str | None, message: str, form: str) -> dict[str, Any]:
    return {**({} if kind is None else {"kind": kind}), "message": message, "form": form}


def _has(result: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(result, Mapping) or name not in result:
            return False
        result = result[name]
    return True


def _shown(response: Response) -> str:
    """A body in a few words, on one line."""
    line = " ".join(response.body[: 4 * LONGEST_SHOWN].decode("utf-8", "replace").split())
    return "".join(c if c.isprintable() else "?" for c in line[:LONGEST_SHOWN]) or "nothing"
