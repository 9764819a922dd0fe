"""What native libraries write on standard error by themselves, beside the error that they raise."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as LibraryTokenizer

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.tokenizer import hf_json as vocab_json
from refllm.tokenizer import native_messages
from refllm.tokenizer.base import library_errors
from refllm.tokenizer.grammar import json_grammar, matcher_of
from refllm.tokenizer.hf_json import JsonTokenizer
from refllm.tokenizer.native_messages import hold_native_messages
from tests.support.vocabularies import llama_like_json

PATH = Path("models/broken.json")
NOTE = "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n"
HEAD = "\nthread '<unnamed>' panicked at src/models/toy.rs:7:5:\n"
HEAD_WITH_ID = HEAD.replace(" panicked", " (4711) panicked")
BACKTRACE = "stack backtrace:\n   0: rust_begin_unwind\n             at /rustc/panicking.rs:1:2\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is held back there")


class Panic(BaseException):
    """As pyo3 raises when Rust panics: no subclass of Exception."""


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "refllm")
    return caplog


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = os.fstat(2)
    descriptors = len(list(Path("/dev/fd").iterdir()))
    yield
    assert os.path.samestat(os.fstat(2), before)
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


def write(text: str) -> None:
    os.write(2, text.encode())


def panic(written: str, message: str) -> None:
    with pytest.raises(Panic), hold_native_messages():  # noqa: PT012
        write(written)
        raise Panic(message)


@pytest.mark.parametrize(
    "written",
    [
        f"{HEAD}index out of bounds\n",
        f"{HEAD}index out of bounds\n{NOTE}",
        f"{HEAD}index out of bounds\n{BACKTRACE}{NOTE}",
        f"{HEAD_WITH_ID}index out of bounds\n",
        f"{HEAD}index out of bounds\n" * 2,
        "sentencepiece_processor.cc(123) LOG(ERROR) index out of bounds\n",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        "E0000 00:00:1795987867.107191   12301 model.cc:130] index out of bounds\n",
        "[libprotobuf ERROR google/protobuf/wire_format_lite.cc:577] index out of bounds\n",
    ],
)
def test_the_stderr_of_a_native_panic_is_logged_instead(
    written: str, capfd: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
) -> None:
    panic(written, "index out of bounds")
    assert capfd.readouterr().err == ""
    assert [record.levelno for record in log.records] == [logging.DEBUG]
    assert "index out of bounds" in log.text


def test_a_panics_message_of_several_lines_is_logged_whole(
    capfd: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
) -> None:
    message = "left\n  right (a+b)*\nend"
    panic(f"{HEAD}{message}\n{NOTE}", message)
    assert capfd.readouterr().err == ""
    assert message in log.text


@pytest.mark.parametrize("most_kept", [5, 2**20])
def test_other_threads_write_to_standard_error_while_native_calls_run(
    most_kept: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_messages, "MAX_HOLD_SECONDS", 0.0)
    monkeypatch.setattr(native_messages, "MAX_KEPT", most_kept)
    with hold_native_messages():
        for line in ("one\n", "two\n"):
            with hold_native_messages():
                write(line)
                assert capfd.readouterr().err == ""
            assert capfd.readouterr().err == line
        write("three\n")
    assert capfd.readouterr().err == "three\n"


def test_in_a_call_that_succeeds_only_native_messages_are_held_back(
    capfd: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
) -> None:
    with hold_native_messages():
        write(f"warning \xff: 3 pieces are unused\n{HEAD}")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "warning \xff: 3 pieces are unused\n"
    assert HEAD.strip() in log.text


def test_lines_of_other_threads_in_a_failing_call_go_to_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    panic(f"GET /a 200\n{HEAD}overflow\n{NOTE}GET /b 200\nhalf a li", "overflow")
    assert capfd.readouterr().err == "GET /a 200\nGET /b 200\nhalf a li"


def test_calls_of_several_threads_and_nested_ones_hold_back_as_one(
    capfd: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture
) -> None:
    all_in, failed = threading.Barrier(3), threading.Event()

    def fails() -> None:
        with pytest.raises(Panic), hold_native_messages(), hold_native_messages():  # noqa: PT012
            all_in.wait()
            write(f"{HEAD}overflow\n{NOTE}")
            raise Panic("overflow")
        failed.set()

    def succeeds() -> None:
        with hold_native_messages():
            all_in.wait()
            failed.wait()
            write("half past four\n")

    threads = [threading.Thread(target=work) for work in (fails, succeeds, succeeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().err == "half past four\n" * 2
    assert log.text.count("overflow") == 1


def test_a_descriptor_that_was_led_elsewhere_meanwhile_stays_there(tmp_path: Path) -> None:
    before = os.dup(2)
    try:
        with (tmp_path / "log").open("wb") as file:
            with hold_native_messages():
                os.dup2(file.fileno(), 2)
            write("to the file\n")
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert (tmp_path / "log").read_text() == "to the file\n"


def test_a_system_without_memfd_holds_back_in_a_temporary_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    panic(f"{HEAD}overflow\n{NOTE}", "overflow")
    assert capfd.readouterr().err == ""


def test_without_a_file_to_hold_it_the_text_is_written(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_more() -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("refllm.tokenizer.native_messages.tempfile.TemporaryFile", no_more)
    panic(f"{HEAD}overflow\n", "overflow")
    assert capfd.readouterr().err == f"{HEAD}overflow\n"


def test_a_process_without_standard_error_works() -> None:
    program = (
        "import os; os.close(2)\n"
        "from refllm.tokenizer.native_messages import hold_native_messages\n"
        "with hold_native_messages():\n"
        "    print('inside')\n"
        "try:\n"
        "    os.fstat(2)\n"
        "except OSError:\n"
        "    print('still closed')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert ended.stdout.split() == [b"inside", b"still", b"closed"]


class Panics:
    """A library that panics for each text of more than nothing."""

    def __init__(self, library: LibraryTokenizer) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        if text:
            write(f"{HEAD}overflow\n{NOTE}")
            raise Panic("overflow")
        return self._library.encode(text, add_special_tokens=add_special_tokens)


def test_a_pipeline_that_panics_for_texts_does_so_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(JsonTokenizer, "_load", lambda _: Panics(llama_like_json()))
    tokenizer = JsonTokenizer(llama_like_json().to_str(), PATH)
    assert tokenizer.encode("") == [1]
    for _ in range(2):
        with pytest.raises(LlmRuntimeError, match="cannot tokenize the text: overflow"):
            tokenizer.encode("abc")
    tokenizer.lowercase_first()
    assert capfd.readouterr().err == ""


class PanickingLibrary:
    """The tokenizers library, as it does for a file that it has not foreseen."""

    @staticmethod
    def from_str(source: str) -> None:
        write(f"{HEAD}overflow\n{NOTE}")
        raise Panic("overflow")


def test_a_tokenizer_json_that_makes_the_library_panic_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(vocab_json, "LibraryTokenizer", PanickingLibrary)
    problem = r"models/broken\.json: not a usable tokenizer\.json: overflow"
    with pytest.raises(LlmRuntimeError, match=problem):
        JsonTokenizer(llama_like_json().to_str(), PATH)
    assert capfd.readouterr().err == ""
    assert "panicked at src/models/toy.rs" in log.text


def test_an_error_without_words_is_called_by_its_name() -> None:
    with (
        pytest.raises(LlmRuntimeError, match="cannot read: MemoryError"),
        library_errors(PATH, "cannot read"),
    ):
        raise MemoryError


def test_a_grammar_that_makes_the_library_panic_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    log: pytest.LogCaptureFixture,
) -> None:
    grammar_trial = pytest.importorskip(
        "refllm.tokenizer.grammar_trial", reason="the extra grammar is not installed"
    )

    def panicking(*_: object) -> None:
        write(f"{HEAD}overflow\n{NOTE}")
        raise Panic("overflow")

    monkeypatch.setattr(grammar_trial, "compiled", panicking)
    tokenizer = JsonTokenizer(llama_like_json().to_str(), PATH)
    with pytest.raises(InvalidInput, match=r"the grammar cannot be used: overflow"):
        matcher_of(tokenizer, json_grammar({"type": "boolean"}))
    assert capfd.readouterr().err == ""
    assert "panicked at src/models/toy.rs" in log.text
