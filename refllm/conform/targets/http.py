"""A target behind a URL: `--protocol spin` or `--protocol openai`.

    target = HttpTarget("http://127.0.0.1:8177", protocol="spin", token="secret")

HTTP carries the groups `text`, `embeddings` and `api`. A case of `api` is sent as its spelling
says, and whatever arrives with a status is an answer to it, refusals too. Where nothing arrives in
time, or no JSON where it should be, the reply is `HarnessError`.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from refllm.conform.case import Case, Group
from refllm.conform.reply import (
    MAX_ANSWER_BYTES,
    Answer,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
    TargetError,
)
from refllm.conform.targets.http_dialects import Asked, Dialect, OpenAiDialect, SpinDialect
from refllm.conform.wire import MAX_NESTING, is_nested_deeper
from refllm.spin.dialects import as_json
from refllm.spin.http_client import (
    MAX_SHOWN,
    PORTS,
    AnswerTooLong,
    ConnectionRefused,
    HttpError,
    Limits,
    Response,
    TimedOut,
    as_one_line,
    check_server_url,
    exchange,
    parse_error_body,
)

__all__ = ["HttpTarget", "Protocol"]

Protocol: TypeAlias = Literal["spin", "openai"]

GROUPS: frozenset[Group] = frozenset({"text", "embeddings", "api"})
BUSY = (429, 502, 503, 504)
REFUSED = (401, 403)
PROBES = 5
PROBE_SECONDS = 0.1
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
        """Create a target; nothing is sent before `start`.

        Args:
            url: The server's; its path does not count, as in Spin.
            protocol: Which of the two the server speaks.
            token: Sent as `authorization: bearer`; None sends no such header.
            model_map: The server's names of the suite's models, by the suite's.
            draws_as_refllm: Whether the server's random numbers are refllm's, of seed 0.
            timeout_seconds: How long one request may take.
        """
        self._url = url
        self._dialect: Dialect = SpinDialect() if protocol == "spin" else OpenAiDialect()
        self._token = token
        self._model_map = model_map or {}
        self._draws_as_refllm = draws_as_refllm
        self._seconds = timeout_seconds
        self._host, self._port = "", 0
        self._server = ""  # the URL without a path
        self._tls: ssl.SSLContext | None = None
        self._ended_by: str | None = None  # the case after which nothing listens any more

    def start(self) -> Implementation:
        """Check that a server is there and accepts the token; its answer does not matter.

        Raises:
            TargetError: Where there is no server, or it wants another token.
        """
        try:
            parts = check_server_url(self._url, option="--token")
        except ValueError as error:
            shown = self._url.rpartition("@")[2]  # without a password
            raise TargetError(f"{shown!r} is not a server's URL: it {error}") from None
        self._host, self._port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._server = f"{parts.scheme}://{host}:{self._port}"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        try:
            response = self._exchange("GET", "/v1/models")
        except HttpError as error:
            raise TargetError(_explanation(error)) from error
        if response.status in REFUSED:
            wanted = "another token" if self._token else "a token"
            raise TargetError(f"the server at {self._server} wants {wanted}; give it with --token")
        return Implementation(
            name="the server",
            groups=GROUPS,
            draws_as_refllm=self._draws_as_refllm,
            details={"protocol": self._dialect.name, "url": self._server},
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
            return HarnessError(_explanation(error), is_lost=True, because_of=self._ended_by)
        except HttpError as error:
            if self._is_listening():
                return HarnessError(_explanation(error), is_lost=True)
            self._ended_by = case.id
            return HarnessError(
                f"the server ended when it was asked {case.id}: nothing listens at {self._server} "
                "any more; look at its log, since no request may end the process",
                is_lost=True,
            )
        self._ended_by = None
        return reply

    def stop(self) -> None:
        """Do nothing: no connection outlives its request."""

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        sent = {"accept-encoding": "identity", "accept": "*/*"}
        if self._token:
            sent["authorization"] = f"bearer {self._token}"
        return exchange(
            method,
            self._server + path,
            headers={**sent, **(headers or {})},
            body=body,
            limits=Limits(self._seconds, self._seconds, MAX_ANSWER_BYTES),
            tls=self._tls,
        )

    def _is_listening(self) -> bool:
        """Return whether the server accepts connections, now and for half a second."""
        for _ in range(PROBES):
            try:
                socket.create_connection((self._host, self._port), timeout=self._seconds).close()
            except ConnectionRefusedError:
                return False
            except OSError:  # it is slow, or the way to it is broken: nothing is known
                return True
            time.sleep(PROBE_SECONDS)  # a process that ends closes its connections one by one
        return True

    # --- requests ---

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
        response = self._exchange("POST", asked.path, asked.headers, as_json(asked.body))
        reply = self._reply(response)
        if not isinstance(reply, Answer):
            return reply
        if "error" in reply.result:
            # The interface's error that the status stands for, where the body names none.
            kind = "runtime-error" if response.status >= 500 else "invalid-input"
            kind = "model-not-supported" if response.status == 404 else kind
            return Answer({"error": {"kind": kind, **reply.result["error"]}}, len(response.body))
        for path in NEEDED[case.group]:
            found: Any = reply.result
            for name in path:
                if not isinstance(found, Mapping) or name not in found:
                    return HarnessError(f"the answer of {asked.path} has no {'.'.join(path)}")
                found = found[name]
        return replace(reply, n_bytes=len(response.body))

    def _api(self, case: Case) -> Reply:
        spelling = case.input["spellings"][self._dialect.name]
        needs_token = bool(case.input.get("needs_token"))
        if needs_token and not self._token:
            return Skipped("the server asks for no token; start it with one, and give --token")
        body: str | None = spelling["body"]
        if body is not None:
            for name, theirs in self._model_map.items():
                body = body.replace(json.dumps(name), json.dumps(theirs))
        response = self._exchange(
            spelling["method"],
            spelling["path"],
            spelling["headers"],
            None if body is None else body.encode(),
        )
        reply = self._reply(response, may_refuse=needs_token)
        if not isinstance(reply, Answer):
            return reply
        protocol = {"protocol": self._dialect.name, "status": response.status}
        return Answer({**reply.result, **protocol}, len(response.body))

    # --- answers ---

    def _reply(self, response: Response, *, may_refuse: bool = False) -> Reply:
        """Return what a response means: a result, a refusal, or that it is no answer."""
        # A character has four bytes at most, and what is shown is short.
        shown = as_one_line(response.body[: 4 * MAX_SHOWN].decode("utf-8", "replace"))
        status = response.status
        if status in BUSY:
            return HarnessError(f"the server is busy or unavailable: {status} {shown}")
        if status in REFUSED and not may_refuse:
            return HarnessError(f"the server refuses the token: {status}; check --token")
        if 300 <= status < 400:
            return HarnessError(
                f"the server redirects: {status}; give the URL that it redirects to"
            )
        if not 200 <= status < 300:
            return _refusal(response.body)
        if response.media_type == "text/event-stream" and isinstance(self._dialect, OpenAiDialect):
            return _streamed(self._dialect, response, shown)
        try:
            value = json.loads(response.body.decode())
        except (ValueError, RecursionError):
            return HarnessError(f"the answer is not JSON: {shown}")
        if is_nested_deeper(value, MAX_NESTING):
            return HarnessError(f"the answer is nested more than {MAX_NESTING} deep: {shown}")
        if isinstance(value, str) or _is_refusal(value):
            return _refusal(response.body)
        return Answer(self._dialect.result(value))


def _streamed(dialect: OpenAiDialect, response: Response, shown: str) -> Reply:
    """Return what a stream of events means; an error in it is a refusal, in spite of the status."""
    lines = response.body.decode("utf-8", "replace").splitlines()
    data = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    is_done = data[-1:] == ["[DONE]"]
    try:
        events = [json.loads(event) for event in data if event != "[DONE]"]
    except (ValueError, RecursionError):
        return HarnessError(f"an event of the stream is not JSON: {shown}")
    if is_nested_deeper(events, MAX_NESTING):
        return HarnessError(f"the stream is nested more than {MAX_NESTING} deep: {shown}")
    for event in events:
        if _is_refusal(event):
            return _refusal(json.dumps(event).encode())
    return Answer({**dialect.streamed(events), "stream_ends": is_done})


def _is_refusal(value: object) -> bool:
    """Return whether an answer reports an error; `"error": null`, as some servers send, is none."""
    return isinstance(value, dict) and value.get("error") is not None


def _refusal(body: bytes) -> Answer:
    """Return the error that a body reports, with its kind if it names one of the interface's."""
    error = parse_error_body(body)
    kind = {} if error.kind is None else {"kind": error.kind}
    return Answer({"error": {**kind, "message": error.message, "form": error.form}})


def _explanation(error: HttpError) -> str:
    """Return the message of a failure on one line, with the options of `refllm conform`."""
    problem, advice = error.args
    if isinstance(error, TimedOut):
        advice = "allow more with --seconds, or look at the server"
    if isinstance(error, AnswerTooLong):
        return f"{problem}"
    return f"{problem}; {advice}"
