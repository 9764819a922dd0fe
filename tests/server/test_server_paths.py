"""No answer of the server has the path of its files; errors name the model's file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.models.bundled import ROOT
from refllm.server.errors import for_clients
from refllm.testing.server_process import RunningServer, running_server
from tests.support.client import Answer, ask
from tests.support.model_files import tiny_llama_folder, tiny_llama_gguf
from tests.support.tiny_bert import tiny_bert_folder

# What is wrong with a model → what its error names.
LLAMAS = {
    "damaged": "damaged.gguf",
    "page": "page.gguf",
    "empty": "empty",
    "several": "several",
    "weightless": "weightless/model.safetensors",
    "headless": "headless/config.json",
    "wordless": "wordless",
    "template": "template/tokenizer_config.json",
    "loop": "loop",
    "absent": "'absent'",
}
BERTS = {"poolless": "poolless/modules.json", "bert-damaged": "bert-damaged/tokenizer.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models in both roots that are searched, relative and absolute."""
    folder = tmp_path_factory.mktemp("secret").resolve()
    llamas = folder / "project" / ".spin" / "ai-models" / "llama"
    berts = folder / "home" / "ai-models" / "bert"
    llamas.mkdir(parents=True)
    berts.mkdir(parents=True)
    whole = tiny_llama_gguf(folder / "whole.gguf").read_bytes()
    (llamas / "damaged.gguf").write_bytes(whole[: len(whole) // 2])
    (llamas / "page.gguf").write_text("<html>")
    (llamas / "empty").mkdir()
    (llamas / "several").mkdir()
    for name in ("a", "b"):
        (llamas / "several" / f"{name}.gguf").write_bytes(whole)
    for name in ("weightless", "headless", "wordless", "template"):
        tiny_llama_folder(llamas / name)
    (llamas / "weightless" / "model.safetensors").write_bytes(b"\x01")
    (llamas / "headless" / "config.json").write_text("{")
    (llamas / "wordless" / "tokenizer.model").unlink()
    (llamas / "template" / "tokenizer_config.json").write_text('{"chat_template": 3}')
    (llamas / "loop").symlink_to(llamas / "loop")
    tiny_bert_folder(berts / "poolless")
    (berts / "poolless" / "modules.json").write_text("[3]")
    tiny_bert_folder(berts / "bert-damaged")
    (berts / "bert-damaged" / "tokenizer.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    environment = os.environ | {"REFLLM_HOME": str(folder / "home"), "HOME": str(folder)}
    with running_server(folder=folder / "project", environment=environment) as server:
        yield server


def asked_in_every_way(url: str, model: str) -> Iterator[Answer]:
    messages = [{"role": "user", "content": "Hi"}]
    yield ask(url, "/infer", {"model": model, "prompt": "Hi"})
    yield ask(url, "/embed", {"model": model, "input": ["Hi"]})
    yield ask(url, "/v1/embeddings", {"model": model, "input": "Hi"})
    for stream in (False, True):
        body = {"model": model, "stream": stream}
        yield ask(url, "/v1/completions", {**body, "prompt": "Hi"})
        yield ask(url, "/v1/chat/completions", {**body, "messages": messages})


@pytest.mark.parametrize("model", [*LLAMAS, *BERTS])
def test_an_error_of_a_model_s_files_names_the_file_within_its_folder(
    model: str, server: RunningServer, folder: Path
) -> None:
    answers = list(asked_in_every_way(server.url, model))
    bodies = [answer.body.decode() for answer in answers]
    assert all(answer.status in (400, 404, 500) for answer in answers), bodies
    assert [body for body in bodies if says_where(body, folder)] == []
    named = {**LLAMAS, **BERTS}[model]
    assert [body for body in bodies if named in body], bodies


def says_where(text: str, folder: Path) -> bool:
    return any(part in text for part in (str(folder), folder.name, str(ROOT.parent), ".spin"))


def test_no_other_page_shows_the_path_of_the_models(server: RunningServer, folder: Path) -> None:
    paths = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/absent")
    for path in (*paths, "/v1/models", "/v1/models/absent", "/v1/models/damaged", "/infer"):
        answer = ask(server.url, path)
        assert not says_where(answer.body.decode(), folder), path


def test_the_log_has_the_whole_path(server: RunningServer, folder: Path) -> None:
    ask(server.url, "/infer", {"model": "damaged", "prompt": "Hi"})
    ask(server.url, "/embed", {"model": "poolless", "input": ["Hi"]})
    log = server.log()
    assert str(folder / "home" / "ai-models" / "bert" / "poolless" / "modules.json") in log
    assert ".spin/ai-models/llama/damaged.gguf" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("kind", [InvalidInput, LlmRuntimeError, ModelNotSupported])
@pytest.mark.parametrize(
    ("whole", "shown"),
    [
        ("/srv/models/llama/a/config.json: lacks x", "llama/a/config.json: lacks x"),
        ("'/srv/models/a.gguf' and /srv/models/b.gguf", "'a.gguf' and b.gguf"),
        ("/srv/models: Permission denied", "a folder of this server: Permission denied"),
        ("[Errno 2] No such file: '/srv/models/a'", "[Errno 2] No such file: 'a'"),
        (
            "no model; looked in /srv/models, /x",
            "no model; looked in this server's folders of models",
        ),
        ("/srv/models2/a is another folder", "/srv/models2/a is another folder"),
        ("POST /v1/embeddings has it", "POST /v1/embeddings has it"),
        ("a problem\nto see them: refllm models list", "a problem\nto see them: GET /v1/models"),
        (f"{ROOT}/llama/tiny-chat.gguf: damaged", "llama/tiny-chat.gguf: damaged"),
    ],
)
def test_a_folder_of_the_server_is_left_out_of_an_error(
    whole: str, shown: str, kind: type[InvalidInput]
) -> None:
    error = for_clients(kind(*whole.split("\n"), code="a_code"), [Path("/srv/models"), ROOT])
    assert (type(error), str(error), error.code) == (kind, shown, "a_code")
