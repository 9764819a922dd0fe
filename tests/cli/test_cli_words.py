"""The first words that a user types: help, versions, other programs' words, misspelled commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from refllm import NUMERICS_REVISION, __version__
from refllm.cli import app
from refllm.cli.commands import ADVICE, ADVICE_ON_MODELS, OPTIONS_OF_BATCHES, OTHER_OPTIONS
from tests.support.commands import answer, refllm

COMMAND_IN_ADVICE = re.compile(r"refllm ((?:models )?[a-z]+)")


def refusal(*arguments: str) -> str:
    """Standard error of a command that must be wrong usage, as one line."""
    result = refllm(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return " ".join(result.stderr.split())


def commands() -> Iterator[tuple[tuple[str, ...], typer.models.CommandInfo]]:
    """Each command that is listed, with the words that name it."""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        assert isinstance(group.name, str)
        for command in group.typer_instance.registered_commands:
            yield (group.name, str(command.name)), command
    for command in app.registered_commands:
        if not command.hidden:
            yield (str(command.name),), command


LISTED = dict(commands())


@pytest.mark.parametrize("words", [(), ("help",), ("-h",), ("--help",)])
def test_without_a_command_there_is_help(words: tuple[str, ...]) -> None:
    output = answer(*words)
    assert output == answer("--help")
    assert "Usage: refllm" in output
    assert 'refllm infer tiny-chat "Once upon a time"' in " ".join(output.split())


def test_without_a_command_of_models_there_is_its_help() -> None:
    assert answer("models") == answer("models", "--help") == answer("help", "models")


@pytest.mark.parametrize("words", LISTED, ids=" ".join)
def test_help_before_a_command_is_its_help(words: tuple[str, ...]) -> None:
    output = answer("help", *words)
    assert output == answer(*words, "--help")
    assert output.startswith(f"Usage: refllm {' '.join(words)} ")


@pytest.mark.parametrize("words", [("version",), ("-V",), ("--version",)])
def test_the_version_has_every_usual_name(words: tuple[str, ...]) -> None:
    assert answer(*words) == f"refllm {__version__}, numerics revision {NUMERICS_REVISION}\n"


@pytest.mark.parametrize("words", LISTED, ids=" ".join)
def test_a_summary_is_the_whole_first_sentence(words: tuple[str, ...]) -> None:
    summary = LISTED[words].short_help
    assert summary
    assert summary.endswith(".")
    listed = " ".join(answer(*words[:-1], "--help").split("Commands:")[1].split())
    assert f"{words[-1]} {summary}" in listed.replace("llama- quantize", "llama-quantize")


@pytest.mark.parametrize("word", [*ADVICE, "ASK"])
def test_another_program_s_word_gets_the_command_that_does_it(word: str) -> None:
    assert ADVICE[word.lower()] in refusal(word, "tiny-chat")


@pytest.mark.parametrize("word", ADVICE_ON_MODELS)
def test_another_program_s_word_behind_models_gets_the_command_that_does_it(word: str) -> None:
    assert ADVICE_ON_MODELS[word] in refusal("models", word)


@pytest.mark.parametrize("advice", sorted({*ADVICE.values(), *ADVICE_ON_MODELS.values()}))
def test_advice_names_commands_that_there_are(advice: str) -> None:
    named = [tuple(words.split()) for words in COMMAND_IN_ADVICE.findall(advice)]
    assert named
    assert [words for words in named if words not in LISTED] == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("infre",), "infer"),
        (("Tokenise",), "tokenize"),
        (("pul",), "pull"),
        (("models", "lst"), "list"),
        (("models", "verfy"), "verify"),
    ],
)
def test_a_misspelled_command_gets_the_one_that_is_meant(
    words: tuple[str, ...], meant: str
) -> None:
    assert re.search(f"Did you mean .*'{meant}'", refusal(*words))


def test_a_word_like_no_command_gets_all_of_them() -> None:
    listed = ", ".join(words[0] for words in LISTED if len(words) == 1)
    every = f"The commands are {listed}, batch, models, kernels."
    assert f"No such command 'xyzzy'. {every}" in refusal("xyzzy")


@pytest.mark.parametrize(
    ("is_of_batches", "command", "option", "advice"),
    [
        (commands is OPTIONS_OF_BATCHES, command, option, advice)
        for commands in (OTHER_OPTIONS, OPTIONS_OF_BATCHES)
        for command, options in commands.items()
        for option, advice in options.items()
    ],
)
def test_another_program_s_option_gets_the_one_that_does_it(
    is_of_batches: bool, command: str, option: str, advice: str
) -> None:
    words = next(
        words for words in LISTED if words[-1] == command and (words[0] == "batch") == is_of_batches
    )
    errors = refusal(*words, option, "value")
    assert f"Error: No such option: {option}. {advice}." in errors
    has = set(re.findall(r"--[a-z-]+", answer(*words, "--help")))
    assert set(re.findall(r"--[a-z-]+", advice)) <= has


@pytest.mark.parametrize("words", [("infer", "m"), ("tokenize", "m")])
def test_a_text_without_quotes_gets_them(words: tuple[str, ...]) -> None:
    assert "Quote a text with spaces." in refusal(*words, "Once", "upon", "a", "time")


@pytest.mark.parametrize("model", ["tiny-chat", "some.gguf"])
def test_a_model_in_a_command_s_place_gets_the_commands_for_models(model: str) -> None:
    assert f"It is a model: refllm infer {model} PROMPT" in refusal(model, "Once upon a time")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("refllm inf", "infer"),
        ("refllm models ver", "verify"),
        ("refllm infer tiny-c", "tiny-chat"),
    ],
)
def test_the_shell_completes_commands_and_models(typed: str, offered: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_REFLLM_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
        "REFLLM_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "refllm"]
    assert subprocess.check_output(command, env=environment, text=True).split() == [offered]


def test_the_help_offers_completion() -> None:
    assert "--install-completion" in answer("--help")
