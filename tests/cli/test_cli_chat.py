"""`refllm chat`: messages, commands, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from refllm.engine import LocalEngine
from refllm.errors import LlmRuntimeError
from refllm.inspect import drawing
from refllm.interface import InferencingParams
from tests.conftest import HUNG_SECONDS
from tests.support.commands import HEEDING, answer, refllm

FEW = ("--max-tokens", "24")
PARAMS = InferencingParams(max_tokens=24)
SECONDS_BETWEEN_SIGNALS = 1


def expected(*messages: str, system: str | None = None) -> list[str]:
    """The answers of the engine to a conversation with these messages of the user."""
    engine = LocalEngine()
    llama = engine.inferencing_model("tiny-chat")
    history = [{"role": "system", "content": system}] if system else []
    answers = []
    for message in messages:
        history.append({"role": "user", "content": message})
        answers.append(engine.infer("tiny-chat", llama.chat_prompt(history), PARAMS).text)
        history.append({"role": "assistant", "content": answers[-1]})
    return answers


def said(*lines: str, options: tuple[str, ...] = ()) -> str:
    return answer("chat", "tiny-chat", *FEW, *options, stdin="".join(f"{li}\n" for li in lines))


def test_each_answer_is_that_of_infer_to_the_template_s_prompt_of_the_whole_conversation() -> None:
    first, second = expected("Hello", "Tell me more.")
    assert said("Hello", "Tell me more.") == f"{first}\n{second}\n"
    assert expected("Tell me more.") != [second]  # so the history was read


def test_the_system_message_begins_the_conversation() -> None:
    (with_it,) = expected("Hello", system="Answer in one word.")
    assert said("Hello", options=("--system", "Answer in one word.")) == f"{with_it}\n"


def test_reset_begins_a_new_conversation() -> None:
    (first,) = expected("Hello")
    assert said("Hello", "/reset", "Hello") == f"{first}\nThe conversation begins again.\n{first}\n"


def test_a_backslash_continues_a_message_on_the_next_line() -> None:
    (one,) = expected("Hello\nthere")
    assert said("Hello\\", "there") == f"{one}\n"


def test_explain_shows_every_step_of_the_last_answer_or_one() -> None:
    output = said("Hello", "/explain")
    n_steps = output.count("\nstep ")
    explained = said("Hello", "/explain 1")
    assert n_steps > 2
    assert explained.count("\nstep ") == 1
    block = explained[explained.index("step 1") :]
    assert block in output
    assert f"The steps of the last answer are 0 to {n_steps - 1}." in said("Hello", "/explain 99")
    assert "There is no answer to explain." in said("/explain")


def test_empty_lines_and_unknown_commands_are_no_messages() -> None:
    output = said("", "  ", "/foo", "/quit", "Hello")
    assert output.startswith("There is no /foo.\n")
    assert output.endswith("at the prompt it ends.\n")


def test_two_slashes_begin_a_message_that_begins_with_one() -> None:
    assert said("//help me") == f"{expected('/help me')[0]}\n"
    assert said("  //") == f"{expected('  /')[0]}\n"


def test_an_error_in_the_middle_of_an_answer_begins_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws_of = drawing.draws_of

    def two_draws(*arguments: Any) -> Iterator[drawing.Draw]:
        yield from islice(draws_of(*arguments), 2)
        raise LlmRuntimeError("the values of layer 3 are not finite")

    monkeypatch.setattr(drawing, "draws_of", two_draws)
    result = refllm("chat", "tiny-chat", stdin="Hello\n")
    assert result.exit_code == 1
    assert result.stdout.endswith("\n")
    assert expected("Hello")[0].startswith(result.stdout.removesuffix("\n"))
    assert result.stdout.strip()
    assert result.stderr == "refllm: runtime-error: the values of layer 3 are not finite\n"


def test_messages_are_utf_8_whatever_the_locale() -> None:
    command = [sys.executable, "-m", "refllm", "chat", "tiny-chat", *FEW]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    for message, output in (("Grüße", f"{expected('Grüße')[0]}\n"), (b"\xff", None)):
        data = message.encode() if isinstance(message, str) else message
        result = subprocess.run(
            command, input=data + b"\n", env=environment, capture_output=True, check=False
        )
        if output is None:
            assert (result.returncode, result.stdout) == (1, b"")
            assert b"invalid-input: standard input is not UTF-8" in result.stderr
        else:
            assert (result.returncode, result.stdout) == (0, output.encode())


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the output")
def test_a_closed_output_is_named() -> None:
    command = f"{sys.executable} -m refllm chat tiny-chat >&-"
    result = subprocess.run(command, shell=True, input=b"Hello\n", capture_output=True, check=False)
    assert result.returncode == 1
    assert b"refllm: runtime-error: standard output is closed\n" in result.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_a_file_gets_the_answers_without_prompts(tmp_path: Path) -> None:
    terminal, end = os.openpty()
    file = tmp_path / "answers"
    command = [sys.executable, "-m", "refllm", "chat", "tiny-chat", *FEW]
    try:
        os.write(terminal, b"Hello\n/quit\n")
        with file.open("wb") as output:
            subprocess.run(command, stdin=end, stdout=output, check=True, timeout=HUNG_SECONDS)
    finally:
        os.close(end)
        os.close(terminal)
    assert file.read_text("utf-8") == f"{expected('Hello')[0]}\n"


def test_a_message_that_does_not_fit_the_context_is_refused_and_the_chat_goes_on() -> None:
    (first,) = expected("Hello")
    output = said("word " * 600, "Hello")
    refusal, again = output.split("\nThe message is not in the conversation; /reset begins a new ")
    assert "the model's context holds 512" in refusal
    assert again == f"one.\n{first}\n"


def test_an_unusable_parameter_is_refused_before_a_message_is_read() -> None:
    result = refllm("chat", "tiny-chat", "--repeat-penalty", "0", stdin="Hello\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "repeat_penalty must be greater than 0" in result.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_in_a_terminal_ctrl_c_stops_an_answer_and_ends_the_chat_at_the_prompt() -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-c", HEEDING, "chat", "tiny-chat", "--temperature", "0"]
    # `ignore_eos` is no option: this prompt has a long answer.
    environment = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True
    ) as process:
        os.close(end)
        try:
            _read_until(terminal, b"> ")
            os.write(terminal, b"Tell me a story.\n")
            _read_until(terminal, b"story.\r\n")
            seen = _read_until(terminal, b" ")
            process.send_signal(signal.SIGINT)
            seen += _read_until(terminal, b"> ")
            assert b"\xe2\x80\xa6" in seen or seen.rstrip().endswith(b">")
            # Python's `input` sees a signal late that arrives before readline waits for a key.
            for _ in range(HUNG_SECONDS // SECONDS_BETWEEN_SIGNALS):
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_BETWEEN_SIGNALS)
                    break
            assert process.returncode == 130
        finally:
            process.kill()
            os.close(terminal)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_in_a_terminal_ctrl_d_ends_the_chat() -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "refllm", "chat", "tiny-chat"]
    with subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env={**os.environ, "TERM": "dumb"}
    ) as process:
        os.close(end)
        try:
            _read_until(terminal, b"> ")
            os.write(terminal, b"\x04")
            assert process.wait(HUNG_SECONDS) == 0
        finally:
            process.kill()
            os.close(terminal)


def _read_until(terminal: int, text: bytes) -> bytes:
    seen = b""
    until = time.monotonic() + HUNG_SECONDS
    while text not in seen:
        assert time.monotonic() < until, seen
        seen += os.read(terminal, 1024)
    return seen
