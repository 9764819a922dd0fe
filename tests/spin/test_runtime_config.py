"""Spin's runtime configuration: which engine it asks for, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.models.find import default_roots
from refllm.spin.remote import RemoteEngine
from refllm.spin.runtime_config import engine_from_runtime_config
from tests.support.servers import CHAT, INFERENCE, answers, serve

REMOTE = """
[llm_compute]
type = "remote_http"
url = "{url}"
auth_token = "secret"
"""
OTHERS = """
[key_value_store.default]
type = "redis"
url = "redis://localhost"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "runtime-config.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("api_type", "path", "answer"),
    [
        ("", "/infer", INFERENCE),
        ('api_type = "default"', "/infer", INFERENCE),
        ('api_type = "open_ai"', "/v1/chat/completions", CHAT),
    ],
)
def test_remote_http_asks_the_url_with_the_token_in_the_dialect(
    api_type: str, path: str, answer: object, tmp_path: Path
) -> None:
    with serve(answers(answer)) as server:
        config = written(tmp_path, REMOTE.format(url=server.url) + api_type + OTHERS)
        engine_from_runtime_config(config).infer("m", "p")
    head = server.requests[0].head.decode()
    assert head.startswith(f"POST {path} ")
    assert "\r\nauthorization: bearer secret\r\n" in head


def test_an_empty_token_is_accepted(tmp_path: Path) -> None:
    config = written(tmp_path, REMOTE.format(url="http://a").replace("secret", ""))
    assert isinstance(engine_from_runtime_config(config), RemoteEngine)


@pytest.mark.parametrize("text", ["", OTHERS, '[llm_compute]\ntype = "spin"', 'state_dir = ""'])
def test_spin_is_the_engine_of_this_machine_and_the_default(text: str, tmp_path: Path) -> None:
    engine = engine_from_runtime_config(written(tmp_path, text))
    assert isinstance(engine, LocalEngine)
    assert engine.roots == default_roots()


def test_the_models_of_a_state_dir_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, 'state_dir = "state"\n[llm_compute]\ntype = "spin"')
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    engine = engine_from_runtime_config(config)
    assert isinstance(engine, LocalEngine)
    assert engine.roots == (work / "state" / "ai-models", *default_roots())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[llm_compute", "not valid TOML"),
        ("llm_compute = 3", "llm_compute must be a table"),
        ("state_dir = 3", "state_dir must be text, the name of a folder"),
        ("[llm_compute]", "llm_compute.type is missing"),
        ("[llm_compute]\ntype = 3", "llm_compute.type must be text in quotes"),
        (
            "[llm_compute]\ntype = 'remote'",
            'llm_compute.type must be "spin" or "remote_http", got \'remote\'',
        ),
        (
            "[llm_compute]\ntype = 'spin'\nurl = 'http://a'",
            "llm_compute.url is not known; for spin there is type",
        ),
        (
            REMOTE + "token = 'secret'",
            "llm_compute.token is not known; for remote_http there is api_type, auth_token, type, "
            "url",
        ),
        ("[llm_compute]\ntype = 'remote_http'", "llm_compute.url is missing"),
        (
            "[llm_compute]\ntype = 'remote_http'\nurl = 'http://a'",
            "llm_compute.auth_token is missing",
        ),
        (
            REMOTE.replace('"secret"', "31415"),
            "llm_compute.auth_token must be text in quotes",
        ),
        (REMOTE.replace('"{url}"', "3"), "llm_compute.url must be text in quotes"),
        (REMOTE.format(url="a.example"), "llm_compute: url must be http://HOST"),
        (REMOTE.format(url="http://me:secret@a"), "llm_compute: url must not hold a name"),
        (REMOTE.replace("secret", "secret\\n"), "llm_compute: auth_token must be printable"),
        (
            REMOTE + 'api_type = "openai"',
            'llm_compute.api_type must be "default" or "open_ai", got \'openai\'',
        ),
    ],
)
def test_a_configuration_that_is_wrong_is_named_with_the_key_and_without_the_token(
    text: str, expected: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text.replace("{url}", "http://a"))
    with pytest.raises(LlmRuntimeError) as raised:
        engine_from_runtime_config(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {expected}")
    assert "secret" not in message
    assert "31415" not in message


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"absent\.toml: cannot be read: No such file"):
        engine_from_runtime_config(tmp_path / "absent.toml")
