"""What a process does before its first answer: what it imports, what it compiles, what it says."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refllm.cli import waiting
from refllm.cli.waiting import announce_compiling, loading_bar


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


def test_the_second_process_compiles_nothing(data_dir: Path) -> None:
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


@pytest.mark.parametrize(
    "module", ["refllm", pytest.param("refllm.spin.shim", marks=pytest.mark.slow)]
)
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


def test_a_file_of_errors_has_no_bar() -> None:
    with loading_bar() as progress:
        assert progress is None


ERASED_LINE = "\x1b[2K"


def loading(
    steps: list[tuple[int, int]], *, patience: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """What a terminal has seen after these steps of loading, and in the end."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", patience)
    screen = standard_error(Screen(), monkeypatch)
    with loading_bar() as show:
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


def test_the_progress_bar_of_loading_shows_the_size_and_is_erased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [(1_000_000, 5_000_000), (5_000_000, 5_000_000)]
    seen, in_the_end = loading(steps, patience=0, monkeypatch=monkeypatch)
    assert "1.0/5.0 MB" in seen
    assert seen.endswith(ERASED_LINE)
    assert in_the_end == seen


def test_the_progress_bar_is_erased_when_loading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(1_000_000, 5_000_000)]
    seen, in_the_end = loading(steps, patience=0, monkeypatch=monkeypatch)
    assert not seen.endswith(ERASED_LINE)
    assert in_the_end.endswith(ERASED_LINE)
