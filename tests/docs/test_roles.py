"""The first hour with refllm, for each kind of reader: from a wheel, without this checkout.

The programs are files in tests/roles that a reader can copy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PROJECT
from tests.docs.test_docs_testing import PAGE, files
from tests.roles.environments import Environment, environment_of, fresh_environment
from tests.support.pages import COMMAND, blocks, matches

pytestmark = [pytest.mark.slow, pytest.mark.network]

ROLES = PROJECT / "tests" / "roles"
CLIENTS = ("openai", "langchain", "litellm", "llama_index")
# tiktoken fetches its vocabularies from a host of its own; litellm's wheel has the one in use.
TIKTOKEN = (
    "import importlib.util, pathlib;"
    "root = pathlib.Path(importlib.util.find_spec('litellm').origin).parent;"
    "print(root / 'litellm_core_utils' / 'tokenizers')"
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return fresh_environment(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def url(fresh: Environment) -> Iterator[str]:
    with fresh.serving("refllm", "serve", "--port", "0") as url:
        yield url


@pytest.fixture(scope="module")
def expected(fresh: Environment) -> Any:
    return json.loads(fresh.output("python", ROLES / "expected.py"))


@pytest.fixture(scope="module", params=CLIENTS)
def answers(
    request: pytest.FixtureRequest, url: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    """The name of a client, and what its program got from the server."""
    client: str = request.param
    suffix = "-llama-index" if client == "llama_index" else ""
    folder = tmp_path_factory.mktemp(client)
    environment = environment_of(ROLES / f"requirements{suffix}.txt", folder)
    more = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    if client == "langchain":
        more["TIKTOKEN_CACHE_DIR"] = environment.output("python", "-c", TIKTOKEN).strip()
    printed = environment.output("python", ROLES / f"{client}_client.py", url, more=more)
    return client, json.loads(printed.splitlines()[-1])


def test_the_environment_has_the_wheel_and_not_the_checkout(
    fresh: Environment, expected: Any
) -> None:
    assert Path(expected["file"]).is_relative_to(fresh.root)
    assert not Path(expected["file"]).is_relative_to(PROJECT)


def test_a_type_checker_finds_that_the_package_is_annotated(expected: Any) -> None:
    assert (Path(expected["file"]).parent / "py.typed").is_file()


# Clients of OpenAI's


def test_a_client_gets_the_texts_of_the_python_api(answers: tuple[str, Any], expected: Any) -> None:
    client, got = answers
    assert got["chat"] == expected[client]["chat"]
    assert got["completion"] == expected[client]["completion"]


def test_a_client_s_stream_is_its_chat_in_parts(answers: tuple[str, Any]) -> None:
    _, got = answers
    assert "".join(part or "" for part in got["stream"]) == got["chat"]
    assert sum(bool(part) for part in got["stream"]) > 3


def test_a_client_gets_the_vectors_of_the_python_api(
    answers: tuple[str, Any], expected: Any
) -> None:
    client, got = answers
    for question in {"embeddings", "query"} & expected[client].keys():
        wanted = np.array(expected[client][question], np.float32)
        assert np.array_equal(np.array(got[question], np.float32), wanted)


def test_a_client_s_exception_names_what_is_wrong_and_what_to_do(
    answers: tuple[str, Any],
) -> None:
    _, got = answers
    assert "no model directory found for model 'absent'" in got["unknown model"]
    assert "to see the models that are here: GET /v1/models" in got["unknown model"]
    assert "the model's context holds 512; shorten the prompt" in got["too long"]
    assert got.get("code", "context_length_exceeded") == "context_length_exceeded"


def test_a_client_s_exception_names_the_key_that_is_refused(answers: tuple[str, Any]) -> None:
    _, got = answers
    assert "tools is not supported here" in got["refused"]
    assert got.get("param", "tools") == "tools"


def test_langchain_s_default_ids_are_refused_with_what_to_set(answers: tuple[str, Any]) -> None:
    client, got = answers
    refusals = got.get("ids of OpenAI's", [])
    assert len(refusals) == (2 if client == "langchain" else 0)
    assert all("check_embedding_ctx_length=False" in refusal for refusal in refusals)


# The author of a backend


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_an_author_s_first_report_names_what_is_wrong(fresh: Environment) -> None:
    with fresh.serving("node", ROLES / "naive_server.js") as address:
        command = ("refllm", "conform", address, "--protocol", "openai", "--quick")
        done = fresh.run(*command, "--html", "report.html")
    assert done.status == 1
    assert address in done.stdout
    assert "begins with the prompt: return only what was generated" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert "Once upon a time, hello!" in (fresh.folder / "report.html").read_text("utf-8")


# The teacher


def test_a_teacher_shows_tokens_values_and_the_next_token(fresh: Environment) -> None:
    pieces = fresh.output("refllm", "tokenize", "tiny-chat", "Once upon a time").splitlines()
    printed = fresh.output("python", ROLES / "teacher.py").splitlines()
    assert f"inp_embd ({len(pieces)}, " in printed[0]
    *_, likeliest, _, _ = printed
    greedy = ("--temperature", "0", "--repeat-penalty", "1", "--max-tokens", "1")
    text = fresh.output("refllm", "infer", "tiny-chat", "Once upon a time", *greedy).rstrip("\n")
    assert likeliest.startswith(f"next: {text.replace(' ', '▁')!r} with ")


# The tester of a Spin application


def test_a_tester_s_files_and_commands_are_those_of_the_documentation(
    fresh: Environment,
) -> None:
    for name, text in files().items():
        (fresh.folder / name).write_text(text, "utf-8")
    commands = COMMAND.findall("\n".join(blocks("console", PAGE)))
    assert len(commands) == 3
    for command, shown in commands:
        printed = fresh.output("sh", "-c", command)
        assert matches(shown, printed), printed
    *_, program = blocks("python", PAGE)
    (shown,) = blocks("text", PAGE)
    assert matches(shown, fresh.output("python", "-c", program))


# The data engineer


def test_a_data_engineer_embeds_json_lines_and_learns_what_was_cut(
    fresh: Environment, url: str
) -> None:
    texts = ["A cat.", "word " * 200]
    lines = "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts))
    (fresh.folder / "texts.jsonl").write_text(lines, "utf-8")
    command = ("refllm", "embed", "tiny-embed", "--file", "texts.jsonl", "--field", "body")
    done = fresh.run(*command, "--max-tokens", "64", "--npy", "vectors.npy")
    assert done.status == 0
    assert "1 of 2 texts" in done.stderr
    vectors = np.load(fresh.folder / "vectors.npy")
    program = (
        "import json, urllib.request as web;"
        f"body = {{'model': 'tiny-embed', 'input': {texts!r}, 'max_tokens': 64}};"
        f"asked = web.Request('{url}/v1/embeddings', json.dumps(body).encode());"
        "print(web.urlopen(asked).read().decode())"
    )
    answer = json.loads(fresh.output("python", "-c", program))
    assert [each["truncated"] for each in answer["data"]] == [False, True]
    served = np.array([each["embedding"] for each in answer["data"]], np.float32)
    assert np.array_equal(vectors, served)


def test_a_file_of_json_is_not_embedded_as_text(fresh: Environment) -> None:
    (fresh.folder / "lines.jsonl").write_text('{"body": "A cat."}\n', "utf-8")
    done = fresh.run("refllm", "embed", "tiny-embed", "--file", "lines.jsonl")
    assert done.status == 1
    assert "--field" in done.stderr
    assert done.stdout == ""
