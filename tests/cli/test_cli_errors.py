"""Every way in which a command ends otherwise than well: exit codes, and one line that says why."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import Result

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.cli.common import one_line, with_exit_codes
from tests.support.commands import refllm
from tests.support.model_files import tiny_bert_folder, tiny_llama_gguf

ADVICE = ("to ", "did you mean ", "the first ", "with ")


def assert_refused(result: Result, kind: str, *expected: str) -> None:
    """The request failed with one line, and there is nothing on standard output.

    Below it may stand lines of advice.
    """
    assert (result.exit_code, result.stdout) == (1, "")
    first, *advice = result.stderr.splitlines()
    assert first.startswith(f"refllm: {kind}: ")
    assert all(line.startswith(ADVICE) for line in advice)
    assert result.stderr.endswith("\n")
    for words in expected:
        assert words in result.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.gguf, tiny-bert, damaged.gguf and text.gguf."""
    folder = tmp_path_factory.mktemp("models")
    data = tiny_llama_gguf(folder / "tiny.gguf").read_bytes()
    tiny_bert_folder(folder / "tiny-bert")
    (folder / "damaged.gguf").write_bytes(data[: len(data) // 2])
    (folder / "text.gguf").write_text("not a model")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _home_without_models(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("command", ["infer", "embed", "tokenize"])
@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("absent.gguf", "invalid-input", "absent.gguf"),
        ("absent/folder", "invalid-input", "absent"),
        ("damaged.gguf", "runtime-error", "damaged.gguf"),
        ("text.gguf", "runtime-error", "text.gguf"),
        ("empty", "runtime-error", "empty"),
    ],
)
def test_a_path_without_a_usable_model_is_named(
    models: Path, command: str, model: str, kind: str, expected: str
) -> None:
    assert_refused(refllm(command, models / model, "text"), kind, expected)


@pytest.mark.parametrize(
    ("command", "kind"),
    [("infer", "invalid-input"), ("embed", "model-not-supported"), ("tokenize", "invalid-input")],
)
def test_an_unknown_model_is_refused_in_the_contract_s_words(command: str, kind: str) -> None:
    assert_refused(refllm(command, "no-such-model", "text"), kind, "no-such-model", "ai-models")


@pytest.mark.parametrize("command", ["infer", "embed", "tokenize"])
@pytest.mark.parametrize("name", ["", "..", "a" * 5000, "\udcff", "x\ny"])
def test_an_invalid_name_is_refused(command: str, name: str) -> None:
    # ".." exists, so it is a path: to a folder without a model.
    kind = "runtime-error" if name == ".." else "invalid-input"
    assert_refused(refllm(command, name, "text"), kind)


def test_a_path_too_long_for_the_file_system_is_refused() -> None:
    result = refllm("tokenize", "a/" * 5000, "text")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(("command", "model"), [("infer", "tiny-bert"), ("embed", "tiny.gguf")])
def test_a_model_of_the_other_kind_is_not_supported(models: Path, command: str, model: str) -> None:
    other = {"infer": "refllm embed", "embed": "refllm infer"}[command]
    path = models / model
    expected = (
        f"{other} {path}",
        "generates text" if command == "embed" else "is an embedding model",
    )
    assert_refused(refllm(command, path, "text"), "model-not-supported", *expected)


@pytest.mark.parametrize(("command", "model"), [("infer", "tiny-embed"), ("embed", "tiny-chat")])
def test_a_name_of_the_other_kind_comes_with_its_command(command: str, model: str) -> None:
    other = {"infer": "embed", "embed": "infer"}[command]
    result = refllm(command, model, "text")
    assert_refused(result, "model-not-supported", repr(model), f"refllm {other} {model} ")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--temperature", "nan", "temperature"),
        ("--temperature", "inf", "temperature"),
        ("--top-p", "1e39", "top_p"),
        ("--top-k", "-1", "top_k"),
        ("--max-tokens", "4294967296", "max_tokens"),
        ("--repeat-penalty", "0", "repeat_penalty"),
        ("--repeat-last-n", "-1", "repeat_penalty_last_n_token_count"),
        ("--seed", "-1", "seed"),
        ("--seed", "18446744073709551616", "seed"),
        ("--profile", "ollama", "profile"),
        ("--threads", "0", "threads"),
    ],
)
def test_an_option_s_impossible_value_is_refused_by_name(
    models: Path, option: str, value: str, expected: str
) -> None:
    result = refllm("infer", models / "tiny.gguf", "text", option, value)
    assert_refused(result, "invalid-input", expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ("infer", "m", "p", "--top-k", "many"),
        ("infer", "m", "p", "--temperature", "warm"),
        ("infer", "m", "p", "--seed", "1.5"),
        ("infer", "m", "p", "--no-such-option"),
        ("infer", "m"),
        ("infer", "m", "p", "another"),
        ("tokenize", "m"),
        ("no-such-command",),
        ("models", "no-such-command"),
    ],
)
def test_wrong_usage_exits_with_2_and_the_right_usage(arguments: Sequence[str]) -> None:
    result = refllm(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    "arguments", [("infer", "m", "-"), ("tokenize", "m", "-"), ("embed", "m", "--file", "-")]
)
def test_a_standard_input_that_is_not_utf_8_is_refused(arguments: Sequence[str]) -> None:
    result = refllm(*arguments, stdin=b"caf\xe9 au lait")
    assert_refused(result, "invalid-input", "standard input", "0xE9", "index 3")


@pytest.mark.parametrize(
    ("command", "what"), [("infer", "PROMPT"), ("tokenize", "TEXT"), ("embed", "TEXT 1")]
)
@pytest.mark.parametrize("surrogate", [0xDCE9, 0xD800])
def test_an_argument_that_is_not_unicode_is_refused(
    command: str, what: str, surrogate: int
) -> None:
    assert_refused(refllm(command, "m", f"caf{chr(surrogate)}"), "invalid-input", what, "index 3")


def test_a_file_that_is_not_there_or_not_utf_8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    assert_refused(refllm("embed", "m", "--file", file), "invalid-input", "texts")
    assert_refused(refllm("embed", "m", "--file", tmp_path), "invalid-input", str(tmp_path))
    file.write_bytes(b"\xff")
    assert_refused(refllm("embed", "m", "--file", file), "invalid-input", "texts", "0xFF")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"id": 1, "text": "cat"}\n{"id": 2}\n', ("JSON lines", "--field", "'id', 'text'")),
        ('\ufeff{"text": "cat"}\n\n', ("JSON lines", "--field", "'text'")),
        ('[{"text": "cat"}]\n', ("one JSON array", "--field", "'text'")),
        ('{\n  "text": "cat"\n}\n', ("one JSON object", "--field")),
    ],
)
def test_json_is_not_embedded_as_plain_text(
    tmp_path: Path, content: str, expected: tuple[str, ...]
) -> None:
    file = tmp_path / "docs.jsonl"
    file.write_text(content, "utf-8")
    assert_refused(refllm("embed", "tiny-embed", "--file", file), "invalid-input", *expected)
    result = refllm("embed", "tiny-embed", "--file", "-", stdin=content.encode())
    assert_refused(result, "invalid-input", "standard input", *expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a cat", "not JSON"),
        ('"cat"', "a JSON string"),
        ('{"body": "cat"}', "no key 'text', but 'body'"),
        ("{}", "no key 'text', but no keys"),
        ('{"text": null}', "'text' is not a text but a JSON null"),
        ('{"text": ["cat"]}', "'text' is not a text but a JSON array"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_line_without_the_field_is_named(line: str, expected: str) -> None:
    lines = f'{{"text": "dog"}}\n{line}\n'.encode()
    result = refllm("embed", "tiny-embed", "--file", "-", "--field", "text", stdin=lines)
    assert_refused(result, "invalid-input", "standard input, line 2", expected)


def test_a_file_that_cannot_be_written_is_named(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "absent" / "vectors.npy"
    result = refllm("embed", models / "tiny-bert", "cat", "--npy", file)
    assert_refused(result, "runtime-error", "vectors.npy: cannot be written")


def test_a_model_or_a_source_that_cannot_be_pulled_is_refused() -> None:
    assert_refused(refllm("models", "pull", "gpt5"), "invalid-input", "gpt5")
    result = refllm("models", "pull", "all-minilm-l6-v2", "--source", "usb-stick")
    assert_refused(result, "invalid-input", "usb-stick")


def test_every_error_is_one_printable_line() -> None:
    assert one_line("a\nb\x1b[0m\u2028\udcff é ▁") == "a\\nb\\x1b[0m\\u2028\\udcff é ▁"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidInput("too\nlong"), "refllm: invalid-input: too\\nlong"),
        (
            InvalidInput("absent", "pull it", "or not"),
            "refllm: invalid-input: absent\npull it\nor not",
        ),
        (LlmRuntimeError("x: cut"), "refllm: runtime-error: x: cut"),
        (ModelNotSupported("gpt2"), "refllm: model-not-supported: gpt2"),
        (MemoryError(), "refllm: runtime-error: there is not enough memory"),
        (
            PermissionError(errno.EACCES, "No", "file"),
            "refllm: runtime-error: [Errno 13] No: 'file'",
        ),
        (
            IndexError("list index out of range"),
            "refllm: runtime-error: unexpected IndexError: list index out of range; "
            "this is a bug in refllm",
        ),
    ],
)
def test_every_error_is_a_line_with_its_advice_below_and_exit_code_1(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end:
        with_exit_codes(_raise)(error)
    assert end.value.exit_code == 1
    assert capsys.readouterr() == ("", line + "\n")


def test_an_interruption_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end:
        with_exit_codes(_raise)(KeyboardInterrupt())
    assert end.value.exit_code == 130
    assert capsys.readouterr() == ("", "")


def test_development_mode_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "flags", SimpleNamespace(dev_mode=True))
    with pytest.raises(IndexError):
        with_exit_codes(_raise)(IndexError("a bug"))


def _raise(error: BaseException) -> None:
    raise error
