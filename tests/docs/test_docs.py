"""README, first steps and SPEC are true: each command and figure in them is run or computed."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refllm import oracle
from refllm.checkpoints.config import llama_config
from refllm.checkpoints.open import open_weights
from refllm.llama import Llama, Segment
from refllm.parameters import Parameters
from tests.conftest import LONG_FILES, PROJECT, QUICK_FILES
from tests.support.pages import BLOCK, COMMAND, blocks, matches, run, user_environment

README = (PROJECT / "README.md").read_text("utf-8")
START = (PROJECT / "docs" / "start.md").read_text("utf-8")
SPEC = (PROJECT / "SPEC.md").read_text("utf-8")


def commands_and_outputs() -> list[tuple[str, str]]:
    """Each command of both pages with the output that is shown below it, each pair once."""
    found = COMMAND.findall("\n".join([*blocks("console", README), *blocks("console", START)]))
    return list(dict.fromkeys(found))


def programs_and_outputs() -> list[tuple[str, str]]:
    """Each Python block of the first steps with the text block behind it."""
    pairs = itertools.pairwise(BLOCK.findall(START))
    return [(a[1], b[1]) for a, b in pairs if (a[0], b[0]) == ("python", "text")]


@pytest.fixture
def reader(tmp_path: Path, minilm_dir: Path, data_dir: Path) -> dict[str, str]:
    """The environment of a reader who follows the pages in an empty folder: tmp_path."""
    shutil.copy(data_dir / "stories260K" / "stories260K.gguf", tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (home / "ai-models").symlink_to(minilm_dir.parent)
    return user_environment(home)


@pytest.mark.network
@pytest.mark.parametrize(("command", "shown"), commands_and_outputs())
def test_a_command_of_the_readme_and_first_steps_prints_what_it_shows(
    command: str, shown: str, tmp_path: Path, reader: dict[str, str]
) -> None:
    printed = run(command, tmp_path, reader)
    assert matches(shown, printed), printed


def test_no_command_or_program_was_overlooked() -> None:
    assert len(commands_and_outputs()) >= 12
    assert len(programs_and_outputs()) == len(blocks("python", START)) == 2
    assert blocks("python", README) == []


@pytest.mark.network
@pytest.mark.parametrize(("program", "shown"), programs_and_outputs())
def test_a_program_of_the_first_steps_prints_what_it_shows(
    program: str, shown: str, tmp_path: Path, reader: dict[str, str]
) -> None:
    assert len(program.splitlines()) <= 9, "eight lines and a blank one"
    printed = run([sys.executable, "-c", program], tmp_path, reader)
    assert matches(shown, printed), printed


def test_the_readmes_first_command_ends_in_commands_that_are_run_here() -> None:
    install, *steps = blocks("sh", README)[0].strip().split(" && ")
    assert install == "pip install ."
    shown = [command for command, _ in COMMAND.findall(blocks("console", README)[0])]
    assert steps == shown[: len(steps)] != []


def test_ci_runs_the_readmes_test_command() -> None:
    assert (
        blocks("sh", README)[1].strip() in (PROJECT / ".ci" / "run").read_text("utf-8").splitlines()
    )


def test_the_readme_names_the_quick_tests_and_their_files_are_there() -> None:
    assert "`pytest -m quick`" in README
    assert "pytest -m quick" in (PROJECT / "justfile").read_text("utf-8")
    assert {path.name for path in (PROJECT / "tests").rglob("test_*.py")} >= QUICK_FILES


def test_the_files_that_processes_begin_with_are_there() -> None:
    assert {path.name for path in (PROJECT / "tests").rglob("test_*.py")} >= set(LONG_FILES)


def test_a_test_of_a_quick_file_is_quick_unless_it_fetches_something() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "quick"]
    files = [
        "tests/networks/test_pooling.py",
        "tests/networks/test_rope.py",
        "tests/server/test_server.py",
    ]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    listed = run([*command, *files], PROJECT, environment)
    assert "tests/networks/test_rope.py::" in listed
    assert "test_the_largest_value_is_copied" in listed
    assert "test_minilm_pooled_otherwise" not in listed
    assert "tests/server/test_server.py::" not in listed


def test_a_run_of_the_tests_shows_which_kernels_it_compiles(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/networks/test_pooling.py::test_the_largest_value_is_copied",
        ],
        cwd=PROJECT,
        env={**os.environ, "REFLLM_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    compiled = re.findall(r"^compiling (\S+) for this machine", done.stderr, re.M)
    assert compiled
    assert len(compiled) == len(list(tmp_path.rglob("*.nbc")))
    assert matches(blocks("text", README)[0], done.stdout.splitlines()[-1])


def test_the_readme_is_a_screen_and_a_half_with_a_table_of_ten_rows() -> None:
    assert len(README.splitlines()) <= 75
    table = README.partition("| made for |")[2].partition("\n\n")[0]
    assert len(table.splitlines()) == 10
    assert README.count("\n- **[") == 3, "three doors"


PACKAGES = [path.parent for path in sorted((PROJECT / "refllm").rglob("__init__.py"))]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_says_in_three_lines_or_more_what_is_in_it(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
    assert len(docstring.splitlines()) >= 3


def test_spec_and_docstrings_state_the_same_errors() -> None:
    source = (PROJECT / "refllm" / "kernels" / "math.py").read_text("utf-8")
    in_spec = re.findall(r"\| (0\.5\d+) ULP \|", SPEC)
    assert len(in_spec) == 6
    assert in_spec == re.findall(r"(0\.50\d+)\s+ULP", source)


def test_spec_states_the_error_against_float64_that_is_measured(data_dir: Path) -> None:
    weights = open_weights(data_dir / "stories260K" / "stories260K.gguf")
    llama = Llama(llama_config(weights), Parameters(weights.path, weights.tensors))
    token_ids, cache = [1], llama.new_cache()
    while len(token_ids) < 200:
        hidden = llama.hidden([Segment(token_ids[-1:], cache)])
        token_ids.append(int(llama.logits(hidden)[0].argmax()))
    wide = {name: tensor.array().astype(np.float64) for name, tensor in weights.tensors.items()}
    exact = oracle.llama(llama.config, wide, token_ids)
    got = llama.forward([Segment(token_ids, llama.new_cache())])[0]
    best = np.sort(exact, axis=1)
    assert f"largest error of a logit is {np.abs(got - exact).max():.2e} " in SPEC
    assert f"(logits up to {np.abs(exact).max():.0f}; " in SPEC
    assert f"the second is {(best[:, -1] - best[:, -2]).min():.1e}" in " ".join(SPEC.split())
