"""The remote engine: what it sends, what it reads, and what it says of a server that errs."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from refllm.api import (
    EmbeddingsResult,
    EmbeddingsUsage,
    Engine,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
    InvalidInput,
    LlmError,
    LlmRuntimeError,
    ModelNotSupported,
)
from refllm.spin.remote import RemoteEngine
from tests.support.servers import CHAT, EMBEDDINGS, INFERENCE, VECTORS, Reply, answers, serve

TOKEN = "a secret of mine"
API_TYPES = ("default", "open_ai")
CUT = {"embedding": [0.1, -1]}
PARAMS = InferencingParams(
    max_tokens=7,
    repeat_penalty=1.1,
    repeat_penalty_last_n_token_count=5,
    temperature=0.8,
    top_k=3,
    top_p=0.9,
)

Ask = Callable[[Engine], InferencingResult | EmbeddingsResult]


def infer(engine: Engine) -> InferencingResult:
    return engine.infer("m/1", "Grüße\n", PARAMS)


def embed(engine: Engine) -> EmbeddingsResult:
    return engine.generate_embeddings("m/1", ["a", "ß"])


def caught(reply: Reply, *, api_type: str = "default", ask: Ask = infer) -> LlmError:
    """The error that comes of this reply; it names the URL, and a second line says what to do."""
    with serve(reply) as server, pytest.raises(LlmError) as raised:
        ask(RemoteEngine(server.url, auth_token=TOKEN, api_type=api_type))
    assert f"POST {server.url}/" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2
    assert len(server.requests) == 1, "a request is sent once"
    return raised.value


# What is sent

HEAD = (
    "POST {path} HTTP/1.1\r\n"
    "host: {host}\r\n"
    "content-length: {length}\r\n"
    "connection: close\r\n"
    "accept: */*\r\n"
    "authorization: bearer a secret of mine\r\n"
    "{more}"
    "\r\n"
)
JSON_TYPE = "content-type: application/json\r\n"
INFER_BODY = (
    '{"model":"m/1","prompt":"Grüße\\n","options":{"maxTokens":7,'
    '"repeatPenalty":1.100000023841858,"repeatPenaltyLastNTokenCount":5,'
    '"temperature":0.800000011920929,"topK":3,"topP":0.8999999761581421}}'
)
CHAT_BODY = (
    '{"messages":[{"role":"user","content":"Grüße\\n"}],"model":"m/1",'
    '"max_completion_tokens":7,"frequency_penalty":1.100000023841858}'
)


@pytest.mark.parametrize(
    ("api_type", "ask", "answer", "path", "more", "body"),
    [
        ("default", infer, INFERENCE, "/infer", "", INFER_BODY),
        ("default", embed, EMBEDDINGS, "/embed", "", '{"model":"m/1","input":["a","ß"]}'),
        ("open_ai", infer, CHAT, "/v1/chat/completions", JSON_TYPE, CHAT_BODY),
        (
            "open_ai",
            embed,
            VECTORS,
            "/v1/embeddings",
            JSON_TYPE,
            '{"input":["a","ß"],"model":"m/1"}',
        ),
    ],
)
def test_a_request_is_these_bytes(
    api_type: str, ask: Ask, answer: object, path: str, more: str, body: str
) -> None:
    with serve(answers(answer)) as server:
        ask(RemoteEngine(server.url, auth_token=TOKEN, api_type=api_type))
    [request] = server.requests
    assert request.body.decode() == body
    host, length = server.url.removeprefix("http://"), len(body.encode())
    # The server reads the head without the empty line that ends it.
    whole = HEAD.format(path=path, host=host, length=length, more=more)
    assert request.head.decode() == whole.removesuffix("\r\n")


def test_without_options_the_defaults_of_the_interface_are_sent() -> None:
    with serve(answers(INFERENCE)) as server:
        RemoteEngine(server.url).infer("m", "p")
    options = json.loads(server.requests[0].body)["options"]
    assert list(options.values()) == [
        100,
        np.float32(1.1),
        64,
        np.float32(0.8),
        40,
        np.float32(0.9),
    ]


def test_the_path_of_the_url_does_not_count() -> None:
    with serve(answers(CHAT)) as server:
        infer(RemoteEngine(f"{server.url}/v1?key=1", api_type="open_ai"))
    assert server.requests[0].head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda e: e.infer("m", "p", InferencingParams(temperature=float("nan"))), "temperature"),
        (lambda e: e.infer("m", "p", InferencingParams(max_tokens=-1)), "max_tokens"),
        (lambda e: e.infer("m", 3), "the prompt must be text"),
        (lambda e: e.infer(None, "p"), "model must be text"),
        (lambda e: e.infer("m", "\ud800"), "lone surrogate"),
        (lambda e: e.generate_embeddings("m", "text"), "put a single one in a list"),
        (lambda e: e.generate_embeddings("m", 3), "must be a list of texts"),
        (lambda e: e.generate_embeddings("m", ["a", 3]), "each of texts must be text, got int"),
    ],
)
def test_a_request_that_is_wrong_is_not_sent(ask: Callable[[Any], object], problem: str) -> None:
    with serve(answers(INFERENCE)) as server, pytest.raises(InvalidInput, match=problem):
        ask(RemoteEngine(server.url))
    assert server.requests == []


# What is read


@pytest.mark.parametrize(("api_type", "answer"), [("default", INFERENCE), ("open_ai", CHAT)])
def test_a_text_comes_with_its_counts(api_type: str, answer: object) -> None:
    with serve(answers(answer)) as server:
        result = infer(RemoteEngine(server.url, api_type=api_type))
    assert result == InferencingResult(" wörld", InferencingUsage(3, 2))


@pytest.mark.parametrize(("api_type", "answer"), [("default", EMBEDDINGS), ("open_ai", VECTORS)])
def test_vectors_come_as_float32_in_the_order_of_the_texts(api_type: str, answer: object) -> None:
    with serve(answers(answer)) as server:
        result = embed(RemoteEngine(server.url, api_type=api_type))
    expected = [[float(np.float32(0.1)), -1.0], [0.0, 2.5]]
    assert result == EmbeddingsResult(expected, EmbeddingsUsage(9))


def test_unknown_keys_of_an_answer_are_ignored() -> None:
    more = {**INFERENCE, "id": "x", "usage": {**INFERENCE["usage"], "cached": True}}  # type: ignore[dict-item]
    with serve(answers(more, status=201)) as server:
        assert infer(RemoteEngine(server.url)).text == " wörld"


@pytest.mark.parametrize(
    ("api_type", "answer"),
    [
        ("default", {**EMBEDDINGS, "truncated": [True, False]}),
        ("open_ai", {**VECTORS, "data": [{**CUT, "truncated": True}, {**CUT, "truncated": False}]}),
    ],
)
def test_an_answer_of_refllm_s_server_marks_texts_that_were_cut(
    api_type: str, answer: object
) -> None:
    with serve(answers(answer)) as server:
        assert embed(RemoteEngine(server.url, api_type=api_type)).truncated == (True, False)


@pytest.mark.parametrize("truncated", [None, 1, [], [True], [1, 0], "no"])
def test_truncated_is_ignored_unless_it_is_a_list_of_booleans(truncated: object) -> None:
    with serve(answers({**EMBEDDINGS, "truncated": truncated})) as server:
        assert embed(RemoteEngine(server.url)).truncated == ()


def test_no_texts_have_no_vectors() -> None:
    with serve(answers({"embeddings": [], "usage": {"promptTokenCount": 0}})) as server:
        result = RemoteEngine(server.url).generate_embeddings("m", [])
    assert result == EmbeddingsResult([], EmbeddingsUsage(0))


def test_requests_from_several_threads_get_their_own_answers() -> None:
    def repeat(connection: socket.socket, body: bytes) -> None:
        answers({**INFERENCE, "text": json.loads(body)["prompt"]})(connection, body)

    prompts = [f"prompt {number}" for number in range(16)]
    with serve(repeat) as server, ThreadPoolExecutor(8) as pool:
        engine = RemoteEngine(server.url)
        results = list(pool.map(lambda prompt: engine.infer("m", prompt), prompts))
    assert [result.text for result in results] == prompts


# Answers of the wrong shape (what else is one, test_api_types.py says)


@pytest.mark.parametrize(
    ("api_type", "ask", "answer", "problem"),
    [
        ("default", infer, CHAT, 'usage.promptTokenCount is missing: {"choices":'),
        ("open_ai", infer, INFERENCE, "usage.prompt_tokens is missing: {"),
        ("default", embed, VECTORS, "embeddings is missing: {"),
        ("open_ai", embed, EMBEDDINGS, "data is missing: {"),
        ("default", embed, {**EMBEDDINGS, "embeddings": [[1]]}, "it has 1 vectors for 2 texts: {"),
        ("default", infer, b"<html>", "it is not JSON: <html>"),
        ("default", infer, b"", "it is not JSON: nothing"),
    ],
)
def test_an_answer_of_another_shape_is_a_runtime_error_that_shows_it(
    api_type: str, ask: Ask, answer: object, problem: str
) -> None:
    error = caught(answers(answer), api_type=api_type, ask=ask)
    assert isinstance(error, LlmRuntimeError)
    assert f"answered 200, but {problem}" in str(error)
    assert "speaks this api_type" in str(error)


# Errors that a server reports


@pytest.mark.parametrize("api_type", API_TYPES)
@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (400, {}, "change the request as the server says, or check api_type"),
        (401, {}, "check auth_token"),
        (403, {}, "check auth_token"),
        (404, {}, "check url, api_type and the model's name"),
        (405, {}, "check url and api_type"),
        (413, {}, "ask for less: a shorter prompt, or fewer texts"),
        (429, {"Retry-After": "12"}, "the server is busy; ask again after 12 seconds"),
        (429, {}, "the server is busy; ask again later"),
        (500, {}, "look at the server's log"),
        (
            503,
            {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"},
            "the server is busy; ask again after Fri, 31 Dec 1999 23:59:59 GMT",
        ),
    ],
)
def test_a_status_that_is_no_success_is_an_error_even_with_a_good_body(
    status: int, headers: dict[str, str], advice: str, api_type: str
) -> None:
    body = CHAT if api_type == "open_ai" else INFERENCE
    error = caught(answers(body, status=status, headers=headers), api_type=api_type)
    assert isinstance(error, LlmRuntimeError)
    assert f"answered {status}: " in error.args[0]
    assert error.args[1] == advice


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "it broke"}},
        {"error": {"message": "it broke", "type": "server_error", "code": 500}},
        {"error": {"message": "it broke", "code": "runtime-error"}},
        {"error": "it broke"},
        "runtime-error: it broke",
        b"it\r\n  broke\n",
    ],
    ids=["message", "message with a foreign type", "our own", "text", "our own text", "plain text"],
)
def test_the_message_of_a_server_s_error_is_shown(body: object, status: int) -> None:
    error = caught(answers(body, status=status))
    assert isinstance(error, LlmRuntimeError)
    assert error.args[0].endswith(": it broke")


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("key", ["kind", "type", "code", None])
@pytest.mark.parametrize("error_type", [InvalidInput, ModelNotSupported, LlmRuntimeError])
def test_an_error_that_names_its_kind_is_of_that_kind(
    error_type: type[LlmError], key: str | None, status: int
) -> None:
    body: object = {"error": {"message": "no such thing", key: error_type.kind}}
    if key is None:  # as refllm's own server answers Spin's client
        body = f"{error_type.kind}: no such thing"
    error = caught(answers(body, status=status))
    assert type(error) is error_type
    assert error.args[0].endswith(": no such thing")


@pytest.mark.parametrize(
    ("kind", "status", "advice"),
    [
        ("invalid-input", 422, "change the request as the server says"),
        ("model-not-supported", 422, "ask for a model that this server has"),
        ("runtime-error", 422, "look at the server's log"),
        ("invalid-input", 401, "check auth_token"),
        ("invalid-input", 503, "the server is busy; ask again later"),
    ],
)
def test_the_remedy_follows_from_the_status_or_else_from_the_kind(
    kind: str, status: int, advice: str
) -> None:
    assert caught(answers(f"{kind}: no", status=status)).args[1] == advice


@pytest.mark.parametrize("text", ["it broke", "odd: it broke"])
def test_a_json_string_without_a_kind_is_shown_whole(text: str) -> None:
    error = caught(answers(text, status=500))
    assert type(error) is LlmRuntimeError
    assert error.args[0].endswith(f" answered 500: {text}")


def test_a_kind_may_stand_alone() -> None:
    error = caught(answers("model-not-supported", status=404))
    assert type(error) is ModelNotSupported
    assert error.args[0].endswith(" answered 404: model-not-supported")


@pytest.mark.parametrize("error", [None, 3, [], {}, {"message": 3}, {"message": None}])
def test_an_error_of_another_shape_is_shown_as_it_came(error: object) -> None:
    message = str(caught(answers({"error": error}, status=500)))
    assert json.dumps({"error": error}) in message


def test_200_characters_of_an_answer_are_shown_on_one_line() -> None:
    [problem, _] = caught(answers(b"\x1b[31m" + b"x\n" * 500, status=500)).args
    assert problem.endswith(": " + ("?[31m" + "x " * 200)[:200])


def test_a_redirect_is_not_followed() -> None:
    with serve(answers(INFERENCE)) as other:
        error = caught(answers(b"", status=307, headers={"Location": f"{other.url}/infer"}))
    assert other.requests == []
    assert f"answered 307 (to {other.url}/infer): nothing" in str(error)
    assert "set url to where the server really is" in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        answers({"error": {"message": f"who is {TOKEN}?"}}, status=401),
        answers(f"{'x' * 195}{TOKEN}".encode(), status=500),
        answers(b"", status=302, headers={"Location": f"http://x/?{TOKEN}"}),
        answers(b"", status=503, headers={"Retry-After": TOKEN}),
        answers({"text": TOKEN}),
    ],
    ids=["message", "text that is cut", "location", "retry-after", "wrong shape"],
)
def test_the_token_is_in_no_message_though_the_server_repeats_it(
    reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = caught(reply)
    assert "secr" not in str(error) + repr(error) + repr(error.__cause__) + caplog.text


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "127.0.0.1:3000"}, "url must be http://HOST"),
        ({"url": "file:///etc/hosts"}, "url must be http://HOST"),
        ({"url": "http://"}, "url must be http://HOST"),
        ({"url": "http://a:b"}, "url must be http://HOST"),
        ({"url": "http://a:0"}, "url must be http://HOST"),
        ({"url": "http://a:70000"}, "url must be http://HOST"),
        ({"url": "http://[::1"}, "url must be http://HOST"),
        ({"url": "http://a\r\nb: c"}, "url must be printable ASCII"),
        ({"url": "http://bücher.example"}, "xn--"),
        ({"url": f"http://me:{TOKEN.split()[1]}@a"}, "the token is auth_token"),
        ({"auth_token": f"{TOKEN}\r\nx: y"}, "auth_token must be printable ASCII"),
        ({"auth_token": f"{TOKEN}ß"}, "auth_token must be printable ASCII"),
        ({"api_type": "openai"}, "api_type must be one of default, open_ai; got 'openai'"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"connect_timeout": float("nan")}, "connect_timeout must be"),
        ({"answer_limit": 0}, "answer_limit must be"),
    ],
)
def test_an_option_that_is_wrong_is_named_and_no_secret_shown(
    options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        RemoteEngine(**{"url": "http://a", **options})
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_engine_is_shown_without_its_token() -> None:
    engine = RemoteEngine("HTTP://a:1/x?y=secret", auth_token=TOKEN, api_type="open_ai")
    assert repr(engine) == "RemoteEngine('http://a:1/', api_type='open_ai')"
