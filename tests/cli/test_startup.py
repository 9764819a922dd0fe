"""What a process does before its first answer: what it imports, what it compiles, what it says."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from refllm.cli import waiting
from refllm.cli.waiting import announce_compiling, loading_bar
from refllm.testing.server_process import running_server
from tests.conftest import HUNG_SECONDS
from tests.support import client
from tests.support.client import eventually
from tests.support.commands import HEEDING


def output_of(program: str, *arguments: str | Path) -> str:
    """What a Python process prints, on both outputs."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ).stdout


def test_importing_refllm_imports_nothing_that_computes() -> None:
    modules = set(output_of("import refllm, sys; print(*sys.modules)").split())
    assert "refllm.api" in modules
    assert not {"numpy", "numba", "gguf", "tokenizers", "sentencepiece"} & modules


def test_importing_the_engine_compiles_nothing() -> None:
    program = (
        "import gc, refllm.engine\n"
        "from numba.core.dispatcher import Dispatcher\n"
        "kernels = [o for o in gc.get_objects() if isinstance(o, Dispatcher)]\n"
        "print(len(kernels), sum(len(kernel.overloads) for kernel in kernels))"
    )
    n_kernels, n_compiled = map(int, output_of(program).split())
    assert n_kernels > 20  # otherwise the program looked for the wrong class
    assert n_compiled == 0


def test_the_second_process_compiles_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_COMPILE", "here")  # so that all is compiled when the first one ends
    program = (
        "import logging, sys\n"
        "from refllm.cli import main\n"
        "logging.basicConfig(format='%(name)s: %(message)s')\n"
        "logging.getLogger('refllm.kernels').setLevel(logging.INFO)\n"
        "main()"
    )
    stories = data_dir / "stories260K" / "stories260K.gguf"
    command = ("infer", stories, "Once upon a time", "--max-tokens", "20")
    output_of(program, *command)
    assert "refllm.kernels:" not in output_of(program, *command)


def test_a_package_that_cannot_be_written_to_is_no_hindrance(tmp_path: Path) -> None:
    # The same three lines in both processes; the second one shall find what the first one kept.
    program = (
        "import numpy as np\n"
        "from refllm.kernels.elementwise import l2_normalize\n"
        "print(l2_normalize(np.array([3, 4], np.float32)), *l2_normalize.stats.cache_hits.values())"
    )
    package = Path(__file__).parents[2] / "refllm"
    before = {path for path in package.rglob("*") if path.suffix in {".nbi", ".nbc"}}
    environment = {**os.environ, "REFLLM_CACHE_DIR": str(tmp_path)}
    outputs = [
        subprocess.check_output([sys.executable, "-B", "-c", program], env=environment, text=True)
        for _ in range(2)
    ]
    assert outputs == ["[0.6 0.8]\n", "[0.6 0.8] 1\n"]
    assert {path for path in package.rglob("*") if path.suffix in {".nbi", ".nbc"}} == before


ASKS_FOR_A_VECTOR = """
from spin_sdk import http, llm

class IncomingHandler(http.IncomingHandler):
    def handle_request(self, request):
        llm.generate_embeddings("tiny-embed", ["A cat."])
        return http.Response(200, {}, b"")
"""


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def kernels() -> Iterator[logging.Logger]:
    """The logger that announces each compilation, as it was before."""
    logger = logging.getLogger("refllm.kernels")
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def standard_error(errors: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """`errors`, in place of standard error; not a fixture, because pytest sets its own after."""
    monkeypatch.setattr(sys, "stderr", errors)
    return errors


@pytest.mark.parametrize("screen", [Screen(), io.StringIO()], ids=["a terminal", "a file"])
def test_compiling_is_announced_once_with_its_cost_and_its_remedy(
    screen: io.StringIO, kernels: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_CACHE_DIR", str(tmp_path))
    level = kernels.level
    announce_compiling()
    standard_error(screen, monkeypatch)
    assert screen.getvalue() == ""
    for name in ("linear", "attention"):
        kernels.info("compiling %s", name)
    assert screen.getvalue() == (
        "refllm: compiling kernels for this machine, for 10 to 60 seconds; a run that finds them "
        f"in {tmp_path} compiles none, so keep that folder between runs, or name another: "
        "REFLLM_CACHE_DIR\n"
    )
    assert kernels.level == level


def test_warnings_are_passed_on_and_compiling_is_announced_beside_them(
    kernels: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_CACHE_DIR", str(tmp_path))
    announce_compiling()
    errors = standard_error(io.StringIO(), monkeypatch)
    kernels.warning("%s is not used", "a folder")
    kernels.info("compiling %s", "linear")
    first, second = errors.getvalue().splitlines()
    assert first == "refllm: a folder is not used"
    assert second.startswith("refllm: compiling kernels")


def test_where_no_folder_can_keep_kernels_the_line_names_the_variable(
    kernels: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.jit.disk_cache.cache_folder", lambda *_: None)
    announce_compiling()
    errors = standard_error(io.StringIO(), monkeypatch)
    kernels.info("compiling %s", "linear")
    assert errors.getvalue().endswith(
        "no folder can keep them for the next run, but REFLLM_CACHE_DIR can name one\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["refllm", "refllm.spin.shim"])
def test_a_command_with_a_cold_cache_announces_it_and_one_with_a_warm_cache_does_not(
    module: str, tmp_path: Path
) -> None:
    handler = tmp_path / "app.py"
    handler.write_text(ASKS_FOR_A_VECTOR)
    options: dict[str, tuple[str | Path, ...]] = {
        "refllm": ("embed", "tiny-embed", "A cat."),
        "refllm.spin.shim": (handler, "--request", "GET /"),
    }
    runs = [
        subprocess.run(
            [sys.executable, "-m", module, *options[module]],
            env={**os.environ, "REFLLM_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    assert [run.stderr.count("refllm: compiling kernels") for run in runs] == [1, 0]
    assert [run.stderr.count("\n") for run in runs] == [1, 0]


# --- Answers before kernels are compiled ---------------------------------------------------------

INFER = ("infer", "tiny-chat", "Once upon a time")


def with_cache(folder: Path) -> dict[str, str]:
    """The variables of a process that keeps its kernels in a folder."""
    variables = {name: os.environ[name] for name in os.environ if name != "REFLLM_COMPILE"}
    return {**variables, "REFLLM_CACHE_DIR": str(folder)}


def ask(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A process that continues a text; its outputs are closed when this returns."""
    return subprocess.run(
        [sys.executable, "-m", "refllm", *INFER, *options],
        env=with_cache(folder),
        capture_output=True,
        text=True,
        check=True,
        timeout=HUNG_SECONDS,
    )


def is_being_compiled(folder: Path) -> bool:
    """Whether a process compiles a kernel: then it has the lock of the kernel's claim."""
    for claim in folder.glob("*/*.claim"):
        try:
            with FileLock(claim, timeout=0):
                pass
        except Timeout:
            return True
    return False


@pytest.mark.slow
def test_a_first_answer_is_the_later_ones_and_its_kernels_are_compiled_after_it(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    first = ask(cache, "--max-tokens", "5")
    assert first.stderr.count("refllm: compiling kernels for this machine, in the background") == 1
    eventually(lambda: ask(cache, "--max-tokens", "5").stderr == "")
    assert ask(cache, "--max-tokens", "5").stdout == first.stdout
    eventually(lambda: not is_being_compiled(cache))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize(
    "words", [(*INFER, "--numerics", "int8"), ("embed", "tiny-embed", "A cat.")], ids=" ".join
)
def test_ctrl_c_ends_the_processes_that_compile(words: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-c", HEEDING, *words]  # waits for its kernels
    process = subprocess.Popen(
        command, env=with_cache(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    eventually(lambda: is_being_compiled(tmp_path))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=HUNG_SECONDS)
    assert (process.returncode, output) == (130, b"")
    assert not is_being_compiled(tmp_path)


COMPILED_HERE = """
import logging
compiled = logging.FileHandler("compiled.log", delay=True)
compiled.addFilter(lambda record: record.module == "disk_cache")
logging.getLogger("refllm.kernels").addHandler(compiled)
"""
"""The start of a program that lists the kernels that its process compiles."""


@pytest.mark.slow
def test_the_first_vector_waits_for_processes_that_compile_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPILED_HERE + HEEDING, "embed", "tiny-embed", "A cat."]
    runs = [
        subprocess.run(
            command,
            env={**with_cache(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=HUNG_SECONDS,
        )
        for _ in range(2)
    ]
    assert [run.stderr.count("\n") for run in runs] == [1, 0]
    assert runs[0].stdout == runs[1].stdout
    assert len(list(tmp_path.glob("cache/*/*.claim"))) > 5
    assert not (tmp_path / "compiled.log").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM for a process")
def test_a_server_answers_meanwhile_and_ends_the_processes_that_compile(tmp_path: Path) -> None:
    body = {"model": "tiny-chat", "prompt": "Once upon a time", "max_tokens": 3}
    with running_server(environment=with_cache(tmp_path)) as server:
        assert client.ask(server.url, "/v1/completions", body).status == 200
        eventually(lambda: is_being_compiled(tmp_path))
    assert not is_being_compiled(tmp_path)


@pytest.mark.slow
def test_without_other_processes_the_first_answer_compiles_all_that_it_needs(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "refllm", *INFER, "--max-tokens", "5"]
    environment = {**with_cache(tmp_path), "REFLLM_COMPILE": "here"}
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stderr.count("for 10 to 60 seconds") for run in runs] == [1, 0]
    assert runs[0].stdout == runs[1].stdout
    assert list(tmp_path.glob("*/*.claim")) == []


def test_a_file_of_errors_has_no_bar() -> None:
    with loading_bar() as progress:
        assert progress is None


ERASED_LINE = "\x1b[2K"


def loading(
    steps: list[tuple[int, int]],
    *,
    patience: float,
    monkeypatch: pytest.MonkeyPatch,
    what: str = "loading",
) -> tuple[str, str]:
    """What a terminal has seen after these steps of loading, and in the end."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", patience)
    screen = standard_error(Screen(), monkeypatch)
    with loading_bar(what, in_bytes=what == "loading") as show:
        assert show is not None
        for done, total in steps:
            show(done, total)
        seen = screen.getvalue()
    return seen, screen.getvalue()


def test_the_progress_bar_of_loading_appears_after_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [(1_000_000, 5_000_000)]
    assert loading(steps, patience=3600, monkeypatch=monkeypatch) == ("", "")


def test_the_progress_bar_of_tracing_counts_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    what = "tracing layers"
    seen, in_the_end = loading([(3, 8), (8, 8)], patience=0, monkeypatch=monkeypatch, what=what)
    assert what in seen
    assert "3/8" in seen
    assert "MB" not in seen
    assert in_the_end.endswith(ERASED_LINE)


def test_the_progress_bar_of_loading_shows_the_size_and_is_erased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [(1_000_000, 5_000_000), (5_000_000, 5_000_000)]
    seen, in_the_end = loading(steps, patience=0, monkeypatch=monkeypatch)
    assert "1.0/5.0 MB" in seen
    assert seen.endswith(ERASED_LINE)
    assert in_the_end == seen


def test_the_progress_bar_does_not_appear_again_after_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [(5_000_000, 5_000_000), (1_000_000, 5_000_000)]  # weights packed between two tokens
    assert loading(steps, patience=0, monkeypatch=monkeypatch) == ("", "")


def test_the_progress_bar_is_erased_when_loading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(1_000_000, 5_000_000)]
    seen, in_the_end = loading(steps, patience=0, monkeypatch=monkeypatch)
    assert not seen.endswith(ERASED_LINE)
    assert in_the_end.endswith(ERASED_LINE)
