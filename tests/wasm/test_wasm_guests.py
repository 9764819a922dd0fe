"""Components that Spin's SDKs made, as they are, answer what the Python API answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refllm.api import InferencingParams
from refllm.engine import LocalEngine
from refllm.models import bundled
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.wasi.http import Request
from tests.guests.build import component
from tests.guests.models import model_roots

pytestmark = pytest.mark.network  # the SDKs that guests are built with

JOKE = "You are a stand up comedy writer. Tell me a joke."
PROMPT = "the cat sat on"
TEXTS = ["the cat", "", "a dog sat on the mat"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    return LocalEngine(roots=model_roots(tmp_path_factory.mktemp("ai-models")))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def javascript(host: Host) -> Program:
    return host.load_handler(component("javascript"))


def called(
    host: Host, guest: Program, engine: LocalEngine, function: str, *arguments: object
) -> Any:
    """What the guest in JavaScript gets when it calls the function."""
    body = json.dumps({"function": function, "arguments": arguments}).encode()
    response = host.respond(guest, Request("POST", "/", (), body), Services(engine))
    assert response.status == 200
    return json.loads(response.body)


@pytest.mark.parametrize("guest", ["python_3", "python_5"])
def test_the_documentation_s_example_has_the_text_of_the_python_api(
    guest: str, host: Host, engine: LocalEngine
) -> None:
    program = host.load_handler(component(guest))
    response = host.respond(program, Request("GET", "/"), Services(engine))
    assert response.status == 200
    assert response.body.decode() == engine.infer("llama2-chat", JOKE).text
    assert ("content-type", b"text/plain") in response.headers


@pytest.mark.parametrize("guest", ["python_3", "python_5"])
def test_the_documentation_s_example_is_answered_by_a_stand_in(guest: str, host: Host) -> None:
    engine = LocalEngine(roots=[], stand_ins=True, allowed_models=["llama2-chat"])
    program = host.load_handler(component(guest))
    response = host.respond(program, Request("GET", "/"), Services(engine))
    expected = LocalEngine(roots=[bundled.ROOT]).infer("tiny-chat", JOKE)
    assert (response.status, response.body.decode()) == (200, expected.text)


def test_infer_in_javascript_is_infer_in_python(
    host: Host, javascript: Program, engine: LocalEngine
) -> None:
    expected = engine.infer("tiny-chat", PROMPT)
    assert called(host, javascript, engine, "infer", "tiny-chat", PROMPT) == {
        "text": expected.text,
        "usage": {
            "promptTokenCount": expected.usage.prompt_token_count,
            "generatedTokenCount": expected.usage.generated_token_count,
        },
    }


def test_javascript_has_the_options_of_python(
    host: Host, javascript: Program, engine: LocalEngine
) -> None:
    options = {
        "maxTokens": 7,
        "repeatPenalty": 1.3,
        "repeatPenaltyLastNTokenCount": 5,
        "temperature": 1.7,
        "topK": 11,
        "topP": 0.6,
    }
    params = InferencingParams(
        max_tokens=7,
        repeat_penalty=1.3,
        repeat_penalty_last_n_token_count=5,
        temperature=1.7,
        top_k=11,
        top_p=0.6,
    )
    got = called(host, javascript, engine, "infer", "tiny-chat", PROMPT, options)
    assert got["text"] == engine.infer("tiny-chat", PROMPT, params).text


def test_embeddings_in_javascript_are_the_same_float32_bits(
    host: Host, javascript: Program, engine: LocalEngine
) -> None:
    expected = engine.generate_embeddings("tiny-embed", TEXTS)
    got = called(host, javascript, engine, "generateEmbeddings", "tiny-embed", TEXTS)
    bits = np.asarray(expected.embeddings, np.float32).view(np.uint32)
    assert (np.asarray(got["embeddings"], np.float32).view(np.uint32) == bits).all()
    assert got["usage"] == {"promptTokenCount": expected.usage.prompt_token_count}


@pytest.mark.parametrize(
    ("function", "arguments", "error"),
    [
        ("infer", ["tiny-embed", PROMPT], "model-not-supported"),
        ("infer", ["no-such-model", PROMPT], "invalid-input"),
        ("infer", ["broken-chat", PROMPT], "runtime-error"),
        ("generateEmbeddings", ["no-such-model", TEXTS], "model-not-supported"),
    ],
)
def test_each_error_arrives_in_javascript_by_its_name(
    function: str,
    arguments: list[object],
    error: str,
    host: Host,
    javascript: Program,
    engine: LocalEngine,
) -> None:
    assert called(host, javascript, engine, function, *arguments)["error"] == error
