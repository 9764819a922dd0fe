"""`python -m refllm` as a process: exit codes, pipes, encodings, and what it imports."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from refllm import NUMERICS_REVISION, __version__
from refllm.checkpoints.open import open_weights
from tests.conftest import HUNG_SECONDS
from tests.support.commands import HEEDING
from tests.support.model_files import tiny_bert_folder, write_gguf

REFLLM = (sys.executable, "-m", "refllm")

# Greedy, from BOS: the golden text of llama2.c's test, which this project did not make. The copy
# that this one repeats is in the test data's README.md.
LLAMA2C_GOLDEN = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    'do."\n'
    "Lily didn't want to help her mom, so she"
)


def without_compiling(standard_error: bytes) -> bytes:
    """What a process wrote, but for the line of the first process that compiles a kernel."""
    lines = standard_error.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"refllm: compiling kernels "))


def refllm(
    *arguments: str | bytes | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """What `python -m refllm` with these arguments does."""
    done = subprocess.run(
        [*REFLLM, *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=HUNG_SECONDS,
    )
    done.stderr = without_compiling(done.stderr)
    return done


@pytest.fixture(scope="module")
def stories(data_dir: Path) -> Path:
    return data_dir / "stories260K" / "stories260K.gguf"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_folder(tmp_path_factory.mktemp("models") / "tiny-bert")


def test_stories260k_generates_the_published_story(stories: Path) -> None:
    golden = LLAMA2C_GOLDEN.encode()
    assert len(golden) == 464
    greedy = ("--temperature", "0", "--repeat-penalty", "1", "--max-tokens", "200")
    process = refllm("infer", stories, "", *greedy)
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout.startswith(golden)
    assert process.stdout.endswith(b"\n")


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m refllm`, until the test is done with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def endless(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with a context so long that no test sees the end of its text."""
    weights = open_weights(stories)
    metadata = dict(weights.hparams) | {"llama.context_length": 1_000_000}
    tensors = {name: tensor.array() for name, tensor in weights.tensors.items()}
    return write_gguf(tmp_path_factory.mktemp("models") / "endless.gguf", metadata, tensors)


LONG = ("--temperature", "0", "--repeat-penalty", "1", "--max-tokens", "1000000")


def test_ctrl_c_in_the_middle_of_the_text_exits_with_130_quietly(endless: Path) -> None:
    with running("infer", endless, "", *LONG) as process:
        assert process.stdout
        beginning = process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == 130
    assert without_compiling(errors) == b""
    assert beginning == b"Once"
    assert rest.endswith(b"\n")


INTERRUPTED_BY = """
import os, signal, sys

class Interrupting:
    \"""Ctrl-C in the import of a module, by a package that goes on without that module.\"""

    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass

sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize("name", ["refllm.cli", "typer", "refllm.engine", "numba"])
def test_ctrl_c_in_an_import_exits_with_130_quietly(name: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_BY + HEEDING, "embed", "tiny-embed", "cat"],
        env={**os.environ, "INTERRUPTED_IMPORT": name},
        capture_output=True,
        check=False,
        timeout=HUNG_SECONDS,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


def test_ctrl_c_in_the_text_of_an_exec_exits_with_130_quietly() -> None:
    program = (
        "import refllm.models.load, signal\n"
        "interrupt = 'import signal; signal.raise_signal(signal.SIGINT)'\n"
        "refllm.models.load.load_tokenizer = lambda *_: exec(interrupt)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program + HEEDING, "tokenize", "tiny-chat", "Once"],
        capture_output=True,
        check=False,
        timeout=HUNG_SECONDS,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


def test_a_second_ctrl_c_while_the_process_ends_is_as_quiet() -> None:
    program = (
        "import atexit, refllm.cli, refllm.jit.workers, signal\n"
        "interrupt = lambda: signal.raise_signal(signal.SIGINT)\n"
        "atexit.register(interrupt)\n"
        "refllm.cli.main = interrupt\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program + HEEDING],
        capture_output=True,
        check=False,
        timeout=HUNG_SECONDS,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


@pytest.mark.skipif(os.name != "posix", reason="other systems report a closed pipe differently")
def test_a_closed_pipe_ends_the_command_without_a_message(endless: Path) -> None:
    with running("infer", endless, "", *LONG) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(4)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=HUNG_SECONDS)
    assert process.returncode == 128 + signal.SIGPIPE
    assert without_compiling(errors) == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "infer --help",
        "models",
        "infer tiny-chat Once --max-tokens 3",
        "infer tiny-chat Once --max-tokens 3 --json",
        "embed tiny-embed cat",
        "embed tiny-embed cat --npy -",
        "tokenize tiny-chat Once",
        "list",
        "show tiny-chat",
        "verify tiny-chat",
        "doctor",
        "kernels list",
        "conform refllm.conform.own:Refllm --only tokenizer/*",
        "serve --port 0",
    ],
)
def test_a_full_disk_is_an_error_of_one_line_about_standard_output(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [*REFLLM, *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=HUNG_SECONDS,
        )
    assert process.returncode == 1
    assert without_compiling(process.stderr) == (
        b"refllm: runtime-error: standard output: No space left on device\n"
    )


def test_output_is_utf_8_whatever_the_locale(stories: Path) -> None:
    process = refllm("tokenize", stories, "Once", env={"PYTHONIOENCODING": "ascii"})
    assert (process.returncode, process.stderr) == (0, b"")
    assert "\t▁Once\n".encode() in process.stdout


@pytest.mark.skipif(os.name != "posix", reason="arguments are bytes on POSIX only")
def test_an_argument_in_another_locale_is_still_utf_8(stories: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    in_c, usual = (refllm("tokenize", stories, "é", env=env) for env in (locale, {}))
    assert (in_c.returncode, in_c.stdout) == (0, usual.stdout)
    assert "\té\n".encode() in usual.stdout


@pytest.mark.skipif(os.name != "posix", reason="arguments are bytes on POSIX only")
def test_an_argument_that_is_not_utf_8_is_invalid_input(stories: Path) -> None:
    process = refllm("infer", stories, b"caf\xe9")
    assert (process.returncode, process.stdout) == (1, b"")
    assert process.stderr == (
        b"refllm: invalid-input: PROMPT is not UTF-8: byte 0xE9 at byte index 3\n"
    )


def test_a_damaged_model_exits_with_1_and_no_traceback(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF")
    process = refllm("infer", damaged, "Once")
    assert (process.returncode, process.stdout) == (1, b"")
    assert process.stderr.startswith(f"refllm: runtime-error: {damaged}: ".encode())
    assert process.stderr.count(b"\n") == 1


def test_wrong_usage_exits_with_2() -> None:
    process = refllm("infer", "--top-k", "many")
    assert (process.returncode, process.stdout) == (2, b"")
    assert process.stderr.startswith(b"Usage: refllm infer ")


def test_npy_on_standard_output_is_a_numpy_file(bert: Path) -> None:
    process = refllm("embed", bert, "--file", "-", "--npy", "-", stdin=b"the cat\na dog\n")
    assert (process.returncode, process.stderr) == (0, b"")
    assert np.load(io.BytesIO(process.stdout)).shape == (2, 32)


def test_the_version_is_the_package_s() -> None:
    version = f"refllm {__version__}, numerics revision {NUMERICS_REVISION}\n"
    assert refllm("--version").stdout == version.encode()


def test_help_imports_nothing_that_computes() -> None:
    program = (
        "import sys, contextlib, refllm.cli\n"
        "sys.argv = ['refllm', 'infer', '--help']\n"
        "with contextlib.suppress(SystemExit): refllm.cli.main()\n"
        "print(*sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert "--repeat-last-n" in output
    assert not {"numpy", "numba", "tokenizers", "refllm.engine"} & set(output.split())
