"""`refllm serve` as Spin's client uses it: requests byte for byte, errors, limits, its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InferencingParams, LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.testing.server_process import RunningServer, running_server
from tests.conftest import HUNG_SECONDS
from tests.support.client import (
    Answer,
    ask,
    eventually,
    http_connection,
    is_idle,
    sent,
    spin_infer,
)

PROMPT = "[INST] Tell me a story about a fox. [/INST]"
TOKEN = "open-sesame"
WITH_TOKEN = {"authorization": f"bearer {TOKEN}"}


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    arguments = ["--token", TOKEN, "--max-body-bytes", "5000", "--max-tokens", "50"]
    arguments += ["--max-texts", "3", "--max-prompt-tokens", "20", "--allow", "tiny-chat"]
    with running_server([*arguments, "--allow", "tiny-embed"]) as server:
        yield server.url


def float32(vectors: list[list[float]]) -> NDArray[np.float32]:
    return np.array(vectors, np.float32)


# What Spin sends


def test_infer_is_answered_as_the_python_api_answers(url: str, engine: LocalEngine) -> None:
    answer = ask(url, "/infer", spin_infer("tiny-chat", PROMPT, maxTokens=30))
    expected = engine.infer("tiny-chat", PROMPT, InferencingParams(max_tokens=30))
    assert answer.status == 200
    assert answer.json == {
        "text": expected.text,
        "usage": {
            "promptTokenCount": expected.usage.prompt_token_count,
            "generatedTokenCount": expected.usage.generated_token_count,
        },
    }


def test_embed_gives_the_python_api_s_bits(url: str, engine: LocalEngine) -> None:
    texts = ["A cat sat on the mat.", "", "Grüße 🙂"]
    answer = ask(url, "/embed", {"model": "tiny-embed", "input": texts}).json
    expected = engine.generate_embeddings("tiny-embed", texts)
    assert np.array_equal(float32(answer["embeddings"]), float32(expected.embeddings))
    assert answer["usage"] == {"promptTokenCount": expected.usage.prompt_token_count}


def test_the_bytes_that_spin_s_client_sends_are_answered(url: str) -> None:
    """No content type, `authorization: bearer`, and serde's JSON of floats that are f32."""
    body = (
        '{"model":"tiny-chat","prompt":"Once","options":{"maxTokens":3,"repeatPenalty":1.1,'
        '"repeatPenaltyLastNTokenCount":64,"temperature":0.8,"topK":40,"topP":0.9}}'
    )
    head = (
        "POST /infer HTTP/1.1\r\nauthorization: bearer whatever\r\naccept: */*\r\n"
        f"host: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    answer = sent(url, (head + body).encode())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    answered = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert answered["usage"]["generatedTokenCount"] == 3


def test_options_may_be_left_out(url: str, engine: LocalEngine) -> None:
    answer = ask(url, "/infer", {"model": "tiny-chat", "prompt": "[INST] Hello! [/INST]"})
    assert answer.json["text"] == engine.infer("tiny-chat", "[INST] Hello! [/INST]").text


def test_a_stand_in_answers_for_spin_s_model(url: str) -> None:
    one, other = (
        ask(url, "/infer", spin_infer(model, PROMPT, maxTokens=20)).json
        for model in ("llama2-chat", "tiny-chat")
    )
    assert one == other


def test_many_clients_at_once_get_the_same_answers_as_alone(url: str, engine: LocalEngine) -> None:
    prompts = [f"[INST] What is {i} + {i + 1}? [/INST]" for i in range(10)]
    prompts += ["Once upon a time", PROMPT, "The", ""] * 3
    params = InferencingParams(max_tokens=25)
    with ThreadPoolExecutor(len(prompts)) as clients:
        answers = list(
            clients.map(
                lambda prompt: ask(url, "/infer", spin_infer("tiny-chat", prompt, maxTokens=25)),
                prompts,
            )
        )
    assert [answer.json["text"] for answer in answers] == [
        engine.infer("tiny-chat", prompt, params).text for prompt in prompts
    ]


# What is wrong


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("/infer", spin_infer("absent", "Hi"), 400, "invalid-input: no model directory found"),
        ("/embed", {"model": "absent", "input": ["a"]}, 404, "model-not-supported: unknown"),
        ("/infer", spin_infer("tiny-embed", "Hi"), 404, "model-not-supported: "),
        (
            "/infer",
            spin_infer("tiny-chat", "Hi", topK=-1),
            400,
            "invalid-input: options.topK must be a whole",
        ),
        ("/infer", spin_infer("tiny-chat", "Hi", maxTokens=2**32), 400, "options.maxTokens"),
        (
            "/infer",
            spin_infer("tiny-chat", "Hi", repeatPenalty=0),
            400,
            "options.repeatPenalty must be greater",
        ),
        ("/infer", spin_infer("tiny-chat", "Hi", topP=1e300), 400, "options.topP must be a finite"),
        ("/infer", spin_infer("tiny-chat", "x " * 2000), 400, "the model's context holds 512"),
        (
            "/infer",
            {"model": "tiny-chat"},
            400,
            "invalid-input: prompt is missing; it must be text",
        ),
        ("/infer", {"model": 1, "prompt": "Hi"}, 400, "model must be text; got 1"),
        (
            "/infer",
            {**spin_infer("tiny-chat", "Hi"), "seed": 1},
            400,
            "seed is an unknown key; the keys are model, prompt, options",
        ),
        (
            "/infer",
            spin_infer("tiny-chat", "Hi", max_tokens=1),
            400,
            "options.max_tokens is an unknown key; did you mean maxTokens? the keys ",
        ),
        ("/infer", b'{"model": "tiny-chat", "prompt"', 400, "the body is not JSON"),
        ("/infer", b'{"model": "tiny-chat", "prompt": NaN}', 400, "prompt must be text; got NaN"),
        ("/infer", b"\xff\xfe", 400, "invalid-input: "),
        ("/infer", b"[" * 100_000, 400, "invalid-input: "),
        (
            "/embed",
            {"model": "tiny-embed", "input": "a"},
            400,
            'input must be a list of texts; got "a"',
        ),
        ("/embed", {"model": "tiny-embed", "input": ["\ud800"]}, 400, "surrogate"),
        ("/infer", b"", 400, "invalid-input: the body is missing; it must be a JSON object"),
        ("/nothing", b"{}", 404, "invalid-input: there is no route /nothing here; GET / lists"),
        ("/infer/", b"{}", 404, "did you mean POST /infer?"),
    ],
)
def test_an_error_has_a_status_and_a_json_string_that_spin_s_reader_shows(
    path: str, body: object, status: int, expected: str, url: str
) -> None:
    answer = ask(url, path, body)
    assert answer.status == status
    assert isinstance(answer.json, str)
    assert expected in answer.json
    assert "Traceback" not in answer.json


NOT_NAMES = ["../tiny-chat", "llama/tiny-chat", "/etc/passwd", "a\\b", "..", "a\0b", "\n", ""]


@pytest.mark.parametrize("name", [*NOT_NAMES, "x" * 3_000_000])
@pytest.mark.parametrize("path", ["/infer", "/embed", "/v1/chat/completions", "/v1/embeddings"])
def test_an_invalid_model_name_is_refused_without_reading_a_file(
    name: str, path: str, url: str
) -> None:
    body = {
        "/infer": spin_infer(name, "Hi"),
        "/embed": {"model": name, "input": ["a"]},
        "/v1/chat/completions": {"model": name, "messages": [{"role": "user", "content": "Hi"}]},
        "/v1/embeddings": {"model": name, "input": "a"},
    }[path]
    answer = ask(url, path, body)
    assert answer.status == 400
    assert b"is not a model's name" in answer.body
    assert len(answer.body) < 1000


def test_a_method_that_a_route_does_not_have_is_refused(url: str) -> None:
    answer = ask(url, "/infer", method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_requests_are_counted_by_route_and_status(guarded_url: str) -> None:
    for path, body in [("/infer", b"{}"), ("/v1/models", None), ("/not/a/route", None)]:
        ask(guarded_url, path, body, headers=WITH_TOKEN)
    counted = ask(guarded_url, "/metrics", headers=WITH_TOKEN).body
    assert b'refllm_requests_total{route="/infer",status="400"} ' in counted
    assert b'refllm_requests_total{route="/v1/models",status="200"} ' in counted
    assert b'refllm_requests_total{route="other",status="404"} ' in counted
    assert b"/not/a/route" not in counted


# Tokens and limits


@pytest.mark.parametrize("path", ["/infer", "/v1/models", "/healthz", "/metrics", "/nothing", "/"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "bearer wrong"},
        {"authorization": TOKEN},
        {"authorization": f"basic {TOKEN}"},
        {"authorization": f"bearer {TOKEN}x"},
        {"authorization": f"bearer {TOKEN[:-1]}"},
        {"authorization": "bearer "},
    ],
)
def test_without_the_token_every_path_is_401(
    path: str, headers: dict[str, str], guarded_url: str
) -> None:
    answer = ask(guarded_url, path, headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"authorization: bearer TOKEN" in answer.body
    assert TOKEN.encode() not in answer.body


@pytest.mark.parametrize("scheme", ["bearer", "Bearer", "BEARER"])
def test_with_the_token_a_request_is_answered(scheme: str, guarded_url: str) -> None:
    answer = ask(guarded_url, "/readyz", headers={"authorization": f"{scheme} {TOKEN}"})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("/infer", spin_infer("tiny-chat", "x" * 6000), 413, "limit of 5000 bytes"),
        ("/infer", spin_infer("tiny-chat", "Hi", maxTokens=51), 400, "this server's limit is 50"),
        ("/infer", spin_infer("tiny-chat", "x " * 30, maxTokens=5), 400, "limit is 20"),
        ("/embed", {"model": "tiny-embed", "input": ["a"] * 4}, 400, "this server's limit is 3"),
        ("/infer", spin_infer("llama2-chat", "Hi", maxTokens=5), 400, "does not have access"),
    ],
)
def test_each_limit_has_its_own_error(
    path: str, body: object, status: int, expected: str, guarded_url: str
) -> None:
    answer = ask(guarded_url, path, body, headers=WITH_TOKEN)
    assert answer.status == status
    assert expected in answer.json


def test_a_body_without_a_length_is_cut_off_at_the_limit(guarded_url: str) -> None:
    head = f"POST /infer HTTP/1.1\r\nhost: localhost\r\nauthorization: bearer {TOKEN}\r\n"
    head += "transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    assert b" 413 " in sent(guarded_url, head.encode() + chunk * 2)[:20]


def test_requests_beyond_the_queue_are_asked_to_retry() -> None:
    arguments = ["--max-waiting", "1", "--max-at-once", "1"]
    body = spin_infer("tiny-chat", "Once upon a time", maxTokens=400, temperature=5, topP=1, topK=0)
    with running_server(arguments) as server, ThreadPoolExecutor(12) as clients:
        answers: list[Answer] = []

        def are_some_refused() -> bool:
            """Ask twelve times at once: on a busy machine they may come one after another."""
            answers.extend(clients.map(lambda _: ask(server.url, "/infer", body), range(12)))
            return any(answer.status == 503 for answer in answers)

        eventually(are_some_refused)
    busy = [answer for answer in answers if answer.status == 503]
    assert all(answer.headers["retry-after"] == "1" for answer in busy)
    assert all("retry after 1 second" in answer.json for answer in busy)
    texts = {answer.json["text"] for answer in answers if answer.status == 200}
    assert len(texts) == 1


def test_a_request_that_takes_too_long_is_ended() -> None:
    body = spin_infer("tiny-chat", "Once", maxTokens=400, temperature=5, topP=1, topK=0)
    with running_server(["--max-seconds", "0.001"]) as server:
        answer = ask(server.url, "/infer", body)
        assert answer.status == 500
        assert "took longer than this server's limit of 0.001 s" in answer.json
        assert ask(server.url, "/healthz").status == 200


def test_a_client_that_disconnects_ends_its_job(url: str) -> None:
    body = json.dumps(spin_infer("tiny-chat", "Once", maxTokens=4000, temperature=5, topP=1))
    for _ in range(20):
        connection = http_connection(url)
        connection.request("POST", "/infer", body)
        connection.close()
    assert ask(url, "/infer", spin_infer("tiny-chat", "Once", maxTokens=1)).status == 200
    eventually(lambda: is_idle(url), "requests that no client is there for go on")


# Its beginning and its end


def test_serve_prints_spin_s_runtime_configuration(tmp_path: Path) -> None:
    with running_server(["--token", TOKEN]) as server:
        assert server.process.stdout is not None
        block = "".join(server.process.stdout.readline() for _ in range(4))
    assert block == (
        f'[llm_compute]\ntype = "remote_http"\nurl = "{server.url}"\nauth_token = "{TOKEN}"\n'
    )


def test_a_server_on_all_interfaces_makes_a_token() -> None:
    with running_server(["--host", "0.0.0.0"]) as server:
        assert server.process.stdout is not None
        token = [server.process.stdout.readline() for _ in range(4)][-1].split('"')[1]
        local = server.url.replace("0.0.0.0", "127.0.0.1")
        assert len(token) > 30
        assert ask(local, "/healthz").status == 401
        assert ask(local, "/healthz", headers={"authorization": f"bearer {token}"}).status == 200


@contextmanager
def streaming(server: RunningServer, **options: float) -> Iterator[http.client.HTTPResponse]:
    """An answer that has begun and is far from its end."""
    connection = http_connection(server.url)
    body = {"model": "tiny-chat", "prompt": "Once", "stream": True, "temperature": 5, "top_p": 1}
    connection.request("POST", "/v1/completions", json.dumps({**body, "top_k": 0, **options}))
    with closing(connection), connection.getresponse() as response:
        assert response.readline().startswith(b"data: ")
        yield response


def test_after_sigterm_running_requests_finish_and_the_exit_code_is_0() -> None:
    # Time enough for a machine that does something else, too: only a hang takes longer.
    patient = ["--grace", str(HUNG_SECONDS), "--max-seconds", str(HUNG_SECONDS)]
    with running_server(patient) as server, streaming(server, max_tokens=300) as response:
        server.process.send_signal(signal.SIGTERM)
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert server.process.wait(HUNG_SECONDS) == 0
        with pytest.raises(OSError, match="refused"):
            ask(server.url, "/healthz")


def test_after_the_grace_time_the_server_ends_during_a_request() -> None:
    with running_server(["--grace", "0"]) as server, streaming(server, max_tokens=4000):
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HUNG_SECONDS) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "192.0.2.1"], "invalid-input: cannot listen on 192.0.2.1:0"),
        (["--token", "two words"], "invalid-input: the token must be of printable ASCII"),
        (["--profile", "best"], "invalid-input: profile must be one of"),
        (["--app", "absent"], "absent"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments: list[str], expected: str) -> None:
    with pytest.raises(LlmRuntimeError) as refusal, running_server(arguments):
        pass
    assert expected in str(refusal.value)
    assert "Traceback" not in str(refusal.value)


def test_a_port_that_is_taken_is_named(url: str) -> None:
    port = str(urlsplit(url).port)
    taken = pytest.raises(LlmRuntimeError, match=f"cannot listen on 127.0.0.1:{port}")
    with taken, running_server(["--port", port]):
        pass


def test_an_application_s_component_has_only_its_models(tmp_path: Path) -> None:
    manifest = 'spin_manifest_version = 2\n[component.web]\nai_models = ["tiny-chat"]\n'
    (tmp_path / "spin.toml").write_text(manifest)
    with running_server(["--app", str(tmp_path), "--component", "web"]) as server:
        assert ask(server.url, "/infer", spin_infer("tiny-chat", "Hi", maxTokens=1)).status == 200
        refused = ask(server.url, "/embed", {"model": "tiny-embed", "input": ["a"]})
    assert "does not have access to use 'tiny-embed'" in refused.json


def test_the_token_can_come_from_the_environment() -> None:
    with running_server(environment={**os.environ, "REFLLM_TOKEN": TOKEN}) as server:
        assert ask(server.url, "/healthz").status == 401
        assert ask(server.url, "/healthz", headers=WITH_TOKEN).status == 200
