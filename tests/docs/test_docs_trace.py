"""The page trace.md: its commands print what it shows, and its program runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from refllm.checkpoints.open import open_gguf
from tests.conftest import PROJECT
from tests.support.pages import COMMAND, blocks, matches, run, user_environment
from tools.record_traces import ENGINES, FOLDER

PAGE = (PROJECT / "docs" / "trace.md").read_text("utf-8")
RECORDED = {
    "modulo.safetensors": FOLDER / "transformers" / "GQA-heads-by-modulo.safetensors",
    "unmasked.safetensors": FOLDER / "sentence-transformers" / "no-attention-mask.safetensors",
    "llama-cpp.safetensors": FOLDER / "llama.cpp" / "right.safetensors",
}
"""The traces of the page, which need other engines."""


def test_the_commands_print_what_the_page_shows_and_its_program_runs(tmp_path: Path) -> None:
    environment = user_environment(tmp_path)
    for name, recorded in RECORDED.items():
        shutil.copyfile(recorded, tmp_path / name)
    commands = COMMAND.findall("".join(blocks("console", PAGE)))
    assert len(commands) == 5
    for command, shown in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert matches(shown, done.stdout), done.stdout + done.stderr
        assert done.returncode == ("First difference" in shown)
    [program] = blocks("python", PAGE)
    run([sys.executable, "-c", program], tmp_path, environment)


def test_the_page_names_the_program_of_each_engine() -> None:
    for name in {engine.script for engine in ENGINES.values()}:
        assert f"](harnesses/{name})" in PAGE
        assert (PROJECT / "docs" / "harnesses" / name).is_file()


def test_each_export_makes_what_the_next_line_traces(tmp_path: Path) -> None:
    lines = [line for block in blocks("sh", PAGE) for line in block.splitlines()]
    traced = []
    for export, trace in zip(lines[::2], lines[1::2], strict=True):
        run(export, tmp_path, user_environment(tmp_path))
        traced.append(tmp_path / trace.split()[2])
    *folders, file = traced
    assert [(folder / "config.json").is_file() for folder in folders] == [True, True]
    assert {tensor.format.name for tensor in open_gguf(file).tensors.values()} == {"F32"}
