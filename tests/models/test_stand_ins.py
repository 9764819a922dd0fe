"""Stand-ins: an embedded model answers for one that is not there, if asked, and never silently."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refllm.api import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.cli import app
from refllm.engine import LocalEngine
from refllm.models.bundled import ROOT, STAND_INS, is_bundled, is_unchanged
from refllm.models.find import list_models

GREETING = "[INST] Hello! [/INST]"
LLAMAS = sorted(name for name in STAND_INS if STAND_INS[name] == "tiny-chat")


@pytest.fixture(autouse=True)
def _nothing_but_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REFLLM_STAND_INS", raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_model_that_ships_is_the_one_that_its_card_describes() -> None:
    found = {model.name: model for model in list_models([ROOT])}
    assert set(found) == {"tiny-chat", "tiny-embed"}
    for name, model in found.items():
        assert is_bundled(model.path)
        assert is_unchanged(model.path)
        assert model.path.stat().st_size <= 4_000_000
        assert name in model.path.with_suffix(".md").read_text("utf-8")


@pytest.mark.parametrize("name", LLAMAS)
def test_a_llama_is_answered_for_by_tiny_chat(name: str) -> None:
    engine = LocalEngine(stand_ins=True)
    assert engine.infer(name, GREETING) == engine.infer("tiny-chat", GREETING)
    assert engine.answering_model(name) == "tiny-chat"


def test_a_bert_is_answered_for_by_tiny_embed() -> None:
    engine = LocalEngine(stand_ins=True)
    texts = ["A cat sat on the mat."]
    expected = engine.generate_embeddings("tiny-embed", texts)
    assert engine.generate_embeddings("all-minilm-l6-v2", texts) == expected


@pytest.mark.parametrize("name", LLAMAS)
def test_without_the_option_no_model_stands_in(name: str) -> None:
    engine = LocalEngine()
    with pytest.raises(InvalidInput, match="--stand-ins"):
        engine.infer(name, GREETING)
    assert engine.answering_model(name) == name


def test_an_embedding_model_that_is_not_there_stays_so_without_being_asked() -> None:
    with pytest.raises(ModelNotSupported, match="to have tiny-embed answer instead"):
        LocalEngine().generate_embeddings("all-minilm-l6-v2", ["a"])


@pytest.mark.parametrize(("value", "is_wanted"), [("1", True), ("0", False), ("", False)])
def test_the_environment_can_ask_for_stand_ins(
    value: str, is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_STAND_INS", value)
    assert LocalEngine().stand_ins is is_wanted
    assert LocalEngine(stand_ins=False).stand_ins is False


def test_an_invalid_refllm_stand_ins_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLLM_STAND_INS", "maybe")
    with pytest.raises(InvalidInput, match="REFLLM_STAND_INS must be 1 or 0, is 'maybe'"):
        LocalEngine()


def test_a_model_that_is_there_answers_itself(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "llama"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "llama" / "tiny-chat.gguf", folder / "llama2-chat.gguf")
    engine = LocalEngine(roots=[tmp_path / "models"], stand_ins=True)
    assert engine.answering_model("llama2-chat") == "llama2-chat"
    assert engine.load("llama2-chat").path == folder / "llama2-chat.gguf"


def test_no_model_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "models" / "llama" / "llama2-chat").mkdir(parents=True)
    engine = LocalEngine(roots=[tmp_path / "models"], stand_ins=True)
    with pytest.raises(LlmRuntimeError, match="has no weights"):
        engine.infer("llama2-chat", GREETING)


def test_no_model_stands_in_for_another_name() -> None:
    with pytest.raises(InvalidInput, match="no model directory found"):
        LocalEngine(stand_ins=True).infer("gpt-4", GREETING)


@pytest.mark.parametrize("model", ["all-minilm-l6-v2", "tiny-embed"])
def test_an_embedding_model_s_stand_in_generates_no_text(model: str) -> None:
    with pytest.raises(ModelNotSupported):
        LocalEngine(stand_ins=True).infer(model, GREETING)


def test_a_component_without_access_gets_no_stand_in_either() -> None:
    engine = LocalEngine(stand_ins=True, allowed_models=["tiny-chat"])
    with pytest.raises(LlmError, match="does not have access to use 'llama2-chat'"):
        engine.infer("llama2-chat", GREETING)


def test_a_stand_in_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = LocalEngine(stand_ins=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            engine.infer("llama2-chat", GREETING)
    assert caplog.messages == ["refllm: tiny-chat stands in for llama2-chat"]


@pytest.mark.parametrize(
    ("arguments", "answering", "asked"),
    [
        (["infer", "llama2-chat", GREETING], "tiny-chat", "llama2-chat"),
        (["embed", "all-minilm-l6-v2", "a"], "tiny-embed", "all-minilm-l6-v2"),
    ],
)
def test_the_command_s_record_names_the_model_that_answered(
    arguments: list[str], answering: str, asked: str
) -> None:
    result = CliRunner().invoke(app, [*arguments, "--json", "--stand-ins"])
    record = json.loads(result.stdout)
    assert (record["model"], record["stands_in_for"]) == (answering, asked)


def test_a_record_of_a_model_that_was_asked_for_by_its_name_mentions_no_stand_in() -> None:
    result = CliRunner().invoke(app, ["infer", "tiny-chat", GREETING, "--json", "--stand-ins"])
    record = json.loads(result.stdout)
    assert record["model"] == "tiny-chat"
    assert "stands_in_for" not in record


def test_the_command_without_the_flag_prints_the_remedy_in_three_lines() -> None:
    result = CliRunner().invoke(app, ["infer", "llama2-chat", GREETING])
    assert result.exit_code == 1
    looked, pull, stand_in = result.stderr.splitlines()
    assert looked.startswith("refllm: invalid-input: no model directory found")
    assert "refllm models pull llama2-chat" in pull
    assert "--stand-ins" in stand_in


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "tiny-chat", "Once upon a time", "--max-tokens", "5"],
        ["embed", "tiny-embed", "A cat sat on the mat."],
        ["infer", "llama2-chat", GREETING, "--stand-ins"],
        ["models", "list"],
    ],
)
def test_the_bundled_models_need_no_network(arguments: list[str]) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*arguments): raise SystemExit('asked the network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from refllm.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout != "") == (0, True), done.stderr
