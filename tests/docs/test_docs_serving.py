"""docs/serving.md is true: its server runs, and answers its commands and its program."""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refllm.cli.common import MEBIBYTE, PROMPT_CACHE_MIB
from refllm.models.bundled import ROOT
from refllm.models.load import LlamaModel, load
from refllm.models.prompt_cache import DEFAULT_BYTES
from refllm.server.routes_spin import Options
from refllm.testing.server_process import running_server
from tests.conftest import PROJECT
from tests.support.client import ask
from tests.support.pages import COMMAND, blocks, matches, run

PAGE = (PROJECT / "docs" / "serving.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8177"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    *_, command = blocks("sh", PAGE)[0].splitlines()
    with running_server(command.removeprefix("refllm serve ").split()) as server:
        yield server.url


def test_the_server_prints_what_is_shown() -> None:
    with running_server() as server:
        assert server.process.stdout is not None
        printed = "".join(server.process.stdout.readline() for _ in range(4))
    shown = blocks("text", PAGE)[0].replace(ADDRESS, server.url)
    assert shown == f"# listening on {server.url}; for Spin's runtime configuration:\n{printed}"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("command", "shown"), COMMAND.findall("\n".join(blocks("console", PAGE))))
def test_a_command_of_the_page_prints_what_it_shows(
    command: str, shown: str, url: str, tmp_path: Path
) -> None:
    printed = run(command.replace(ADDRESS, url), tmp_path, {"PATH": "/usr/local/bin:/usr/bin:/bin"})
    assert matches(shown, printed), printed


def test_the_program_of_the_page_prints_what_it_shows(url: str, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="pip install openai")
    [program] = blocks("python", PAGE)
    printed = run([sys.executable, "-c", program.replace(ADDRESS, url)], tmp_path, {})
    assert matches(blocks("text", PAGE)[1], printed), printed


HTTP = re.compile(r"^(GET|POST) (\S+)\n((?:[a-z-]+: .*\n)*)(?:\n(.*)\n)?$")
EXCHANGES = list(zip(blocks("http", PAGE)[::2], blocks("http", PAGE)[1::2], strict=True))


@pytest.mark.parametrize(("asked", "answered"), EXCHANGES)
def test_a_request_of_the_page_has_the_answer_that_it_shows(
    asked: str, answered: str, url: str
) -> None:
    request = HTTP.fullmatch(asked)
    assert request is not None
    method, path, head, body = request.groups()
    headers = dict(line.split(": ", 1) for line in head.splitlines())
    data = None if body is None else body.encode()
    answer = ask(url, path, data, method=method, headers=headers)
    status, _, shown = answered.partition("\n\n")
    assert answer.status == int(status)
    assert matches(shown, answer.body.decode()), answer.body


def test_each_route_that_computes_has_an_exchange_of_success_and_one_that_is_refused() -> None:
    succeeded = {asked.split("\n")[0] for asked, answered in EXCHANGES if answered[:3] == "200"}
    routes = ("infer", "embed", "v1/chat/completions", "v1/completions", "v1/embeddings")
    assert succeeded >= {f"POST /{route}" for route in routes}
    assert {answered[:3] for _, answered in EXCHANGES} == {"200", "400", "404"}


def test_the_page_names_every_option_of_spin_with_its_default() -> None:
    for name, field in Options.model_fields.items():
        key = field.alias or name
        assert f"| `{key}` | {field.description} | {field.default:g} |" in PAGE


def test_the_page_names_every_path_and_every_limit() -> None:
    server = PROJECT / "refllm" / "server"
    sources = "".join(file.read_text("utf-8") for file in server.glob("*.py"))
    paths = set(re.findall(r"@(?:app|router)\.\w+\(\s*\"(/\S+?)\"", sources))
    assert len(paths) == 11
    assert [path for path in paths if f"{path}`" not in PAGE] == []
    commands = "".join((PROJECT / f"refllm/cli/{name}.py").read_text() for name in ("serve", "run"))
    options = re.findall(r"^    (max_\w+|\w+_mib): ", commands, re.M)
    assert "prompt_cache_mib" in options
    assert [name for name in options if f"`--{name.replace('_', '-')}`" not in PAGE] == []


def test_the_page_says_how_much_memory_a_token_of_a_prompt_takes_and_how_much_there_is() -> None:
    tiny_chat = load(ROOT / "llama" / "tiny-chat.gguf")
    assert isinstance(tiny_chat, LlamaModel)
    assert tiny_chat.new_cache().n_bytes_per_token == 2 * 1024
    # TinyLlama 1.1B and Llama 2 7B: layers, key/value heads, head width.
    assert [2 * math.prod(shape) * 4 for shape in ((22, 4, 64), (32, 32, 128))] == [
        44 * 1024,
        2**20,
    ]
    one_line = " ".join(PAGE.split())
    assert "2 KiB in tiny-chat, 44 KiB in TinyLlama 1.1B, 1 MiB in Llama 2 7B" in one_line
    assert DEFAULT_BYTES == PROMPT_CACHE_MIB * MEBIBYTE
    assert f"`--prompt-cache-mib` is the limit in MiB (default {PROMPT_CACHE_MIB})" in one_line
