"""What a backend under test says: lines of a harness, and answers of a server."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

from refllm.api import InvalidInput
from tools.attack.mutate import damaged_bytes, damaged_json, damaged_json_text
from tools.attack.target import Input, Target

if TYPE_CHECKING:
    from refllm.conform.case import Case
    from refllm.conform.reply import Reply

__all__ = ["TARGET"]

MAX_BYTES = 5000  # of a right answer, so that an input takes milliseconds
FINDINGS = 0.02  # of the answers are looked at for known mistakes, too, which takes longer
HELLO: Mapping[str, Any] = {
    "version": 1,
    "implementation": {"name": "mine", "version": "1", "language": "C", "details": {"a": "b"}},
    "groups": ["tokenizer", "text"],
    "draws_as_refllm": True,
}
STATUSES = (200, 200, 200, 200, 400, 404, 500, 503, 401, 302, 204)
MEDIA_TYPES = ("application/json", "application/json", "text/event-stream", "text/plain")
HTTP_GROUPS = ("text", "embeddings", "api")


@functools.cache
def _cases() -> Mapping[str, Sequence[Case]]:
    """The suite's cases with short answers, by group."""
    from refllm.conform.suite import load_suite
    from refllm.conform.wire import to_wire

    cases: dict[str, list[Case]] = {}
    for case in load_suite().cases:
        if len(json.dumps(to_wire(case.expected))) <= MAX_BYTES:
            cases.setdefault(case.group, []).append(case)
    return cases


def _case(random: Random, groups: Sequence[str] = ()) -> Case:
    cases = _cases()
    return random.choice(cases[random.choice([*(groups or cases)])])


def _prepare(_folder: Path) -> None:
    from refllm.conform.faults.diagnosis import findings_of

    _cases()
    findings_of([])


def _build(random: Random, _folder: Path) -> Input:
    read, value = random.choice(_KINDS)(random)
    return Input((read, value, random.random() < FINDINGS), len(repr(value)))


def _hello(random: Random) -> tuple[Callable[..., Reply | str], Any]:
    return _read_hello, (damaged_json_text(random, HELLO),)


def _line(random: Random) -> tuple[Callable[..., Reply | str], Any]:
    from refllm.conform.wire import to_wire

    case = _case(random)
    result = to_wire(case.expected)
    kind = random.random()
    if kind < 0.7:
        line = json.dumps({"id": case.id, "result": damaged_json(random, result)}).encode()
    elif kind < 0.95:
        line = damaged_json_text(random, {"id": case.id, "result": result})
    else:
        line = damaged_json_text(random, {"id": case.id, random.choice(("skip", "error")): "why"})
    return _read_line, (case, line)


def _answer(random: Random) -> tuple[Callable[..., Reply | str], Any]:
    case = _case(random, HTTP_GROUPS)
    protocol = random.choice(("spin", "openai"))
    n_texts = len(case.input.get("texts", ())) or 1
    text, vectors = case.expected.get("text", "a"), case.expected.get("embeddings") or [[1.0]]
    right: Any = {
        "spin": {
            "text": text,
            "embeddings": vectors,
            "usage": {"promptTokenCount": 3, "generatedTokenCount": 4},
        },
        "openai": {
            "choices": [{"text": text, "message": {"content": text}, "delta": {"content": text}}],
            "data": [{"embedding": vector, "index": 0} for vector in vectors][:n_texts],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        },
    }[protocol]
    if random.random() < 0.2:
        right = random.choice(
            (
                {"error": {"message": "no", "type": "invalid-input", "code": "x"}},
                {"error": "no"},
                {"detail": ["no"]},
                "invalid-input: no model",
            )
        )
    body = damaged_json_text(random, right)
    media_type = random.choice(MEDIA_TYPES)
    if media_type == "text/event-stream":
        body = b"".join(b"data: %s\n\n" % each for each in (body, body, b"[DONE]"))
        if random.random() < 0.3:
            body = damaged_bytes(random, body)
    return _read_answer, (case, protocol, random.choice(STATUSES), media_type, body)


_KINDS = (_hello, _line, _line, _line, _line, _answer, _answer)


def _read_hello(line: bytes) -> str:
    from refllm.conform.targets.protocol import implementation_of, message_of

    implementation = implementation_of(message_of(line))
    return repr((implementation.name, sorted(implementation.groups), implementation.details))


def _read_line(case: Case, line: bytes) -> Reply:
    from refllm.conform.targets.protocol import message_of, reply_of

    return reply_of(message_of(line), case.id)


def _read_answer(case: Case, protocol: Any, status: int, media_type: str, body: bytes) -> Reply:
    from refllm.conform.targets import http
    from refllm.spin.http_client import Response

    target = http.HttpTarget("http://127.0.0.1:9", protocol=protocol, draws_as_refllm=True)
    response = Response(status, media_type, body)
    with mock.patch.object(
        http, "exchange", side_effect=[Response(200, media_type, b""), response]
    ):
        target.start()
        return target.run(case)


def _read(given: Input) -> bytes:
    from refllm.conform.faults.diagnosis import findings_of
    from refllm.conform.runner import verdict_of
    from refllm.conform.targets.protocol import ProtocolError

    read, value, wants_findings = given.value
    try:
        reply = read(*value)
    except ProtocolError as error:  # which `refllm conform` reports
        raise InvalidInput(str(error)) from error
    if isinstance(reply, str):
        return reply.encode("utf-8", "surrogatepass")
    verdict = verdict_of(value[0], reply)
    findings = findings_of([verdict]) if wants_findings else {}
    if verdict.status == "error":
        raise InvalidInput(verdict.reason)
    return repr((verdict.status, verdict.difference, findings)).encode("utf-8", "surrogatepass")


TARGET = Target(
    name="conform",
    what="answers of a backend that refllm conform asks",
    weight=60,
    build=_build,
    read=_read,
    prepare=_prepare,
    max_seconds=10.0,  # each known fault writes the text once more
)
