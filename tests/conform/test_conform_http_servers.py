"""Targets over HTTP: servers that do not behave, or say things in another way."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from refllm.conform.case import Case
from refllm.conform.reply import Answer, HarnessError, Reply
from refllm.conform.targets.http import HttpTarget, Protocol
from tests.support import servers
from tests.support.golden_api import GREEDY, case_named, embeddings_case, text_case
from tests.support.servers import answers, drips, never_answers, repeats, serve
from tests.support.servers import sends as raw

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SLOW: Mapping[str, servers.Reply] = {
    "nothing": never_answers,
    "a byte of the body at a time": drips,
    "an answer that is announced again and again": repeats(b"", CONTINUE),
    "a header without end": repeats(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "digits of a chunk's size": repeats(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"
    ),
}


def responds(status: int, body: str, *, media_type: str = "application/json") -> servers.Reply:
    return answers(body.encode(), status=status, headers={"content-type": media_type})


def reply_to(case: Case, sends: servers.Reply, *, protocol: Protocol = "spin") -> Reply:
    seconds = 0.2 if sends in SLOW.values() else 60.0
    with serve(sends) as server:
        target = HttpTarget(
            f"{server.url}/v1", protocol=protocol, token="x", timeout_seconds=seconds
        )
        target.start()
        return target.run(case)


@pytest.mark.parametrize("case", [text_case(), GREEDY], ids=["text", "api"])
@pytest.mark.parametrize(
    ("sends", "problem"),
    [
        (responds(200, "Hello"), "the answer is not JSON: Hello"),
        (responds(200, ""), "the answer is not JSON: nothing"),
        (responds(200, "[" * 200 + "]" * 200), "the answer is nested more than 32 deep"),
        (responds(200, "[" * 10_000), "the answer is not JSON"),
        (
            raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"),
            "the connection ended before the answer did",
        ),
        (responds(503, '"busy"'), 'busy or unavailable: 503 "busy"'),
        (responds(401, '"no"'), "refuses the token: 401"),
        (responds(307, "{}"), "the server redirects: 307"),
        *((slow, r"came in time \(0\.2 s.*; allow more with --seconds") for slow in SLOW.values()),
        (raw(b"SSH-2.0\r\n"), r"the answer is not HTTP/1\.1"),
        (raw(b""), "the connection ended before the answer did"),
    ],
)
def test_a_response_that_is_no_answer_is_a_harness_error(
    case: Case, sends: servers.Reply, problem: str
) -> None:
    reply = reply_to(case, sends)
    assert isinstance(reply, HarnessError)
    assert re.search(problem, reply.message)


def test_an_answer_over_the_limit_is_a_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refllm.conform.targets.http.MAX_ANSWER_BYTES", 1000)
    reply = reply_to(text_case(), responds(200, " " * 1001))
    assert isinstance(reply, HarnessError)
    assert "query result exceeds limit of 1000 bytes" in reply.message


@pytest.mark.parametrize(
    ("case", "answer", "missing"),
    [
        (text_case(), {"usage": {"promptTokenCount": 1, "generatedTokenCount": 1}}, "text"),
        (text_case(), {"text": 5}, "text"),
        (text_case(), {"text": "Hi"}, "usage.prompt_token_count"),
        (
            text_case(),
            {"text": "Hi", "usage": {"promptTokenCount": 1, "generatedTokenCount": True}},
            "usage.generated_token_count",
        ),
        (embeddings_case(), {"usage": {"promptTokenCount": 1}}, "embeddings"),
        (embeddings_case(), {"embeddings": [[1.0]]}, "usage.prompt_token_count"),
        (text_case(), [], "text"),
    ],
)
def test_an_answer_that_lacks_something_is_no_answer(
    case: Case, answer: object, missing: str
) -> None:
    reply = reply_to(case, responds(200, json.dumps(answer)))
    assert isinstance(reply, HarnessError)
    assert reply.message.endswith(f"has no {missing}")


def test_a_case_of_the_interface_gets_what_there_is() -> None:
    reply = reply_to(GREEDY, responds(200, '{"text": "Hi"}'))
    assert reply == Answer({"text": "Hi", "protocol": "spin", "status": 200})


# --- Refusals, as they are written ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('"invalid-input: no: never"', ("invalid-input", "no: never", "string")),
        ('"model-not-supported"', ("model-not-supported", "", "string")),
        ('"unauthorized: no"', (None, "unauthorized: no", "string")),
        (
            '{"error": {"message": "no", "code": "runtime-error"}}',
            ("runtime-error", "no", "error object"),
        ),
        (
            '{"error": {"message": "no", "type": "invalid_request_error", "code": null}}',
            (None, "no", "error object"),
        ),
        ('{"error": "no"}', (None, "no", "object")),
        ('{"detail": "no"}', (None, "no", "object")),
        ('{"detail": [{"loc": ["top_k"]}]}', (None, '[{"loc": ["top_k"]}]', "object")),
        ('{"why": "no"}', (None, '{"why": "no"}', "object")),
        ("Not Found", (None, "Not Found", "text")),
        ("", (None, "", "text")),
    ],
)
def test_a_refusal_is_read_in_each_of_its_forms(
    body: str, error: tuple[str | None, str, str]
) -> None:
    reply = reply_to(GREEDY, responds(400, body))
    assert isinstance(reply, Answer)
    kind, message, form = error
    expected = {"message": message, "form": form} | ({} if kind is None else {"kind": kind})
    assert reply.result == {"error": expected, "protocol": "spin", "status": 400}


@pytest.mark.parametrize("body", ['"runtime-error: no"', '{"error": {"message": "no"}}'])
def test_an_error_body_with_status_200_is_a_refusal(body: str) -> None:
    reply = reply_to(GREEDY, responds(200, body))
    assert isinstance(reply, Answer)
    assert (reply.result["error"]["message"], reply.result["status"]) == ("no", 200)


def test_an_answer_whose_error_is_null_is_no_refusal() -> None:
    reply = reply_to(GREEDY, responds(200, '{"text": "Hi", "error": null}'))
    assert reply == Answer({"text": "Hi", "protocol": "spin", "status": 200})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid-input"),
        (422, "invalid-input"),
        (404, "model-not-supported"),
        (500, "runtime-error"),
    ],
)
def test_a_refusal_of_a_text_without_a_kind_has_that_of_its_status(status: int, kind: str) -> None:
    reply = reply_to(text_case(), responds(status, "no"))
    assert isinstance(reply, Answer)
    assert reply.result["error"]["kind"] == kind


# --- OpenAI's answers ----------------------------------------------------------------------------

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def result_of(case: Case, body: str, *, media_type: str = "application/json") -> Any:
    reply = reply_to(case, responds(200, body, media_type=media_type), protocol="openai")
    assert isinstance(reply, Answer), reply
    return {key: reply.result[key] for key in reply.result if key not in ("protocol", "status")}


@pytest.mark.parametrize(
    "choice", [{"text": " Hi"}, {"message": {"role": "assistant", "content": " Hi"}}]
)
def test_a_completion_and_a_chat_are_a_text(choice: object) -> None:
    body = json.dumps({"choices": [choice], "usage": USAGE})
    usage = {"prompt_token_count": 3, "generated_token_count": 2}
    assert result_of(GREEDY, body) == {"text": " Hi", "usage": usage}


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("is_chat", [False, True])
def test_a_stream_is_put_together(separator: str, is_chat: bool) -> None:
    parts = [
        {"choices": [{"delta": {"content": part}} if is_chat else {"text": part}]}
        for part in (" H", "i")
    ]
    last = {"choices": [], "usage": USAGE}
    events = [{"choices": [{"delta": {"role": "assistant"}}]}, *parts, last]
    lines = [": a comment", *(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
    body = separator.join([*lines, ""])
    assert result_of(GREEDY, body, media_type="text/event-stream; charset=utf-8") == {
        "text": " Hi",
        "usage": {"prompt_token_count": 3, "generated_token_count": 2},
        "stream_ends": True,
    }


def test_a_stream_that_is_cut_off_does_not_end() -> None:
    body = 'data: {"choices": [{"text": "H"}]}\n\n'
    assert result_of(GREEDY, body, media_type="text/event-stream") == {
        "text": "H",
        "stream_ends": False,
    }


def test_an_error_inside_a_stream_is_a_refusal() -> None:
    body = 'data: {"error": {"message": "no", "code": "runtime-error"}}\n\ndata: [DONE]\n\n'
    error = {"kind": "runtime-error", "message": "no", "form": "error object"}
    assert result_of(GREEDY, body, media_type="text/event-stream") == {"error": error}


def test_an_event_that_is_no_json_is_a_breakdown() -> None:
    bad = responds(200, "data: {\n\n", media_type="text/event-stream")
    assert isinstance(reply_to(GREEDY, bad, protocol="openai"), HarnessError)


def test_vectors_come_as_numbers_or_in_base64() -> None:
    case = case_named("http-embedding-base64")
    in_base64 = base64.b64encode(bytes.fromhex("0000803f000000c0")).decode()
    for written, encoding in (([1.0, -2.0], "float"), (in_base64, "base64")):
        body = json.dumps({"data": [{"embedding": written}], "usage": {"prompt_tokens": 3}})
        assert result_of(case, body) == {
            "embeddings": [[1.0, -2.0]],
            "encoding": encoding,
            "usage": {"prompt_token_count": 3},
        }


@pytest.mark.parametrize("written", ["no base64!", "AAAA", 5, None, "AAAA" * 100_000])
def test_malformed_vectors_are_left_out(written: object) -> None:
    body = json.dumps({"data": [{"embedding": written}]})
    assert result_of(case_named("http-embedding-base64"), body) == {}


# --- What is sent --------------------------------------------------------------------------------


def asked_by(case: Case, protocol: Protocol) -> tuple[str, Any]:
    """The path and the body that a case is asked with, where tiny-chat is called other."""
    with serve(answers({})) as server:
        names = {"tiny-chat": "other", "tiny-embed": "another"}
        target = HttpTarget(f"{server.url}/v1", protocol=protocol, token="x", model_map=names)
        target.start()
        target.run(case)
    request = server.requests[-1]
    return request.head.split()[1].decode(), json.loads(request.body)


def test_spin_is_asked_with_all_six_options() -> None:
    path, body = asked_by(text_case(), "spin")
    assert path == "/infer"
    assert body == {
        "model": "other",
        "prompt": GREEDY.input["prompt"],
        "options": {
            "maxTokens": 64,
            "repeatPenalty": 1.0,
            "repeatPenaltyLastNTokenCount": 64,
            "temperature": 0.0,
            "topK": 40,
            "topP": pytest.approx(0.9),
        },
    }


def test_openai_s_server_is_asked_for_a_raw_prompt_without_a_penalty() -> None:
    path, body = asked_by(text_case(), "openai")
    assert path == "/v1/completions"
    assert (body["model"], body["prompt"]) == ("other", GREEDY.input["prompt"])
    assert (body["temperature"], body["max_tokens"]) == (0.0, 64)
    assert (body["frequency_penalty"], body["repeat_penalty"]) == (0, 1.0)


@pytest.mark.parametrize(("protocol", "path"), [("spin", "/embed"), ("openai", "/v1/embeddings")])
def test_texts_are_asked_in_their_list(protocol: Protocol, path: str) -> None:
    found, body = asked_by(embeddings_case(), protocol)
    assert (found, body["model"], body["input"]) == (path, "another", ["A cat.", ""])


@pytest.mark.parametrize("protocol", ["spin", "openai"])
def test_a_spelled_request_has_the_server_s_names(protocol: Protocol) -> None:
    _, body = asked_by(GREEDY, protocol)
    spelled = json.loads(GREEDY.input["spellings"][protocol]["body"])
    assert body == {**spelled, "model": "other"}
