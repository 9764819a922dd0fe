"""The page batch-cluster.md: its commands print what it shows, and its programs run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import PROJECT
from tests.support.pages import COMMAND, blocks, matches, user_environment

PAGE = (PROJECT / "docs" / "batch-cluster.md").read_text("utf-8")
PROGRAMS = blocks("python", PAGE)
SHOWN = [block for block in blocks("text", PAGE) if not block.startswith("refllm:")]
SECONDS = 600.0  # a loaded machine
has_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed; pip install '.[ray]'"
)


def program_of(line: str) -> tuple[str, str]:
    """Return the page's program with this line, and what it prints."""
    [found] = [pair for pair in zip(PROGRAMS, SHOWN, strict=True) if line in pair[0]]
    return found


def check(program: str, shown: str, folder: Path, python: str = sys.executable) -> None:
    environment = {
        **user_environment(folder),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HOME": str(folder),
    }
    script = folder / "program.py"
    script.write_text(program)
    for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine can need
        done = subprocess.run(
            [python, str(script)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if "timed out during startup" not in done.stderr:
            break
    assert matches(shown, done.stdout), done.stdout + done.stderr


@pytest.mark.slow
@has_ray
def test_the_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    commands = COMMAND.findall("".join(blocks("console", PAGE)))
    assert len(commands) == 3
    for command, shown in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=user_environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert matches(shown, done.stdout + done.stderr), done.stdout + done.stderr


def test_the_program_with_batches_prints_what_the_page_shows(tmp_path: Path) -> None:
    check(*program_of("Embedder, Generator"), tmp_path)


@pytest.mark.slow
@has_ray
def test_the_program_with_ray_data_prints_what_the_page_shows(tmp_path: Path) -> None:
    check(*program_of("import ray\n"), tmp_path)
    schemas = [pq.read_schema(file) for file in (tmp_path / "of-ray").glob("*.parquet")]
    assert len(schemas) > 1
    types = {"text": pa.string(), "embedding": pa.list_(pa.float32(), 384)}
    expected = pa.schema({**types, "token_count": pa.int32(), "error": pa.string()})
    assert all(schema.equals(expected) for schema in schemas)


@pytest.mark.network
def test_the_programs_with_dask_and_datasets_print_what_the_page_shows(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    [packages] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    ours = [each for each in sys.path if each.endswith("site-packages")]
    (packages / "ours.pth").write_text("\n".join(ours))  # pip installs only what is not there
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "dask[dataframe]", "datasets"],
        check=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": ""},
    )
    for line in ("import dask.dataframe", "from datasets"):
        check(*program_of(line), tmp_path, python)
