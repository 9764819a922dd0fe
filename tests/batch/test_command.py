from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refllm import InferencingParams, LocalEngine
from refllm.batch import Embedder, Generator
from refllm.batch.local import PART_ROWS, Progress
from refllm.batch.writer import MANIFEST
from refllm.cli import batch
from refllm.cli.batch import embed, infer
from tests.conftest import HUNG_SECONDS
from tests.support.commands import HEEDING, answer, refllm


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs.csv").write_text("name,body\n" + "".join(f"{i},text {i}\n" for i in range(9)))
    return tmp_path / "docs.csv"


def test_embed_writes_vectors_and_prints_what_is_there(tmp_path: Path, docs: Path) -> None:
    arguments = ("batch", "embed", docs, "--to", tmp_path / "out", "--model", "tiny-embed")
    options = ("--column", "body", "--id-column", "name", "--part-rows", "4")
    assert answer(*arguments, *options) == f"{tmp_path}/out: 9 rows in 3 parts\n"
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == [str(i) for i in range(9)]
    expected = LocalEngine().generate_embeddings("tiny-embed", ["text 4"]).embeddings[0]
    assert table["embedding"][4].as_py() == expected


def test_infer_writes_texts_with_parameters_of_options_and_columns(tmp_path: Path) -> None:
    rows = [{"who": "Lily", "n": 4}, {"who": "Tom", "n": None}, {"who": None, "n": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompt.jinja").write_text("{{ who }} was")
    out = answer(
        *("batch", "infer", tmp_path / "a.jsonl", "--to", tmp_path / "out"),
        *("--model", "tiny-chat", "--template", f"@{tmp_path}/prompt.jinja", "--seed", "3"),
        *("--max-tokens", "6", "--temperature", "1.5", "--per-row", "max_tokens=n"),
    )
    assert out == f"{tmp_path}/out: 3 rows in 1 part, 1 with an error\n"
    table = pq.read_table(tmp_path / "out")
    for text, who, n in zip(table["generated_text"], ["Lily", "Tom"], [4, 6], strict=False):
        params = InferencingParams(max_tokens=n, temperature=1.5)
        assert text.as_py() == LocalEngine(seed=3).infer("tiny-chat", f"{who} was", params).text
    assert table["error"][2].as_py() == "the column 'who' is null"


def test_the_only_column_of_texts_needs_no_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "body": ["x"]}), tmp_path / "a.parquet")
    folder = tmp_path / "out"
    answer("batch", "embed", tmp_path, "--to", folder, "--model", "tiny-embed")
    assert json.loads((folder / MANIFEST).read_bytes())["options"]["column"] == "body"
    # The output is inside the input's folder: its parts are no input.
    answer("batch", "embed", tmp_path, "--to", folder, "--model", "tiny-embed")


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["docs.csv"], 2, "Missing option"),
        (["--to", "out", "--model", "tiny-embed"], 2, "Missing argument"),
        (["absent.csv", "--to", "out", "--model", "tiny-embed"], 1, "no file, folder or match at"),
        (["docs.csv", "--to", "out", "--model", "tiny-embed"], 1, "choose one of its columns"),
        (
            ["docs.csv", "--to", "out", "--model", "tiny-embed", "--column", "text"],
            1,
            "has no column 'text'; its columns are 'name', 'body'",
        ),
        (
            ["docs.csv", "--to", "out", "--model", "tiny-chat", "--column", "body"],
            1,
            "in the folder of models that generate text",
        ),
        (
            ["docs.csv", "--to", "out", "--model", "absent", "--column", "body"],
            1,
            "absent",
        ),
        (
            ["docs.csv", "--to", "out", "--model", "tiny-embed", "--on-long", "cut"],
            1,
            "choose one of its columns",
        ),
        (
            [*["docs.csv", "--to", "out", "--model", "tiny-embed"], "--column=body", "--on-long=x"],
            1,
            "on_long must be one of error, truncate, chunk-mean; got 'x'",
        ),
    ],
)
def test_wrong_usage_is_named_without_a_traceback(
    docs: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, named: str
) -> None:
    monkeypatch.chdir(docs.parent)
    result = refllm("batch", "embed", *options)
    assert result.exit_code == code
    assert named in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())
    assert "Traceback" not in result.stderr
    assert not (docs.parent / "out").exists()


def test_a_template_and_a_column_exclude_each_other(docs: Path) -> None:
    options = ("--to", docs.parent / "out", "--model", "tiny-chat", "--column=a", "--template=b")
    result = refllm("batch", "infer", docs, *options)
    assert result.exit_code == 2
    assert "give either --column or --template" in result.stderr


def test_without_its_packages_the_command_names_the_extra(docs: Path) -> None:
    ours = [name for name in sys.modules if name.startswith("refllm.batch.")]
    with mock.patch.dict(sys.modules, {"pyarrow": None}):
        for name in ours:
            del sys.modules[name]
        result = refllm(
            "batch", "embed", docs, "--to", docs.parent / "out", "--model", "tiny-embed"
        )
    assert result.exit_code == 1
    assert "refllm batch needs the package pyarrow" in result.stderr
    assert ".[batch]" in result.stderr


def test_the_rows_of_a_part_are_those_of_a_run_by_default() -> None:
    defaults = [inspect.signature(each).parameters["part_rows"].default for each in (embed, infer)]
    assert defaults == [PART_ROWS[Embedder], PART_ROWS[Generator]]


def test_words_of_other_programs_are_answered_with_the_command() -> None:
    result = refllm("batch", "encode", "x")
    assert "refllm batch embed IN makes a vector of every row" in result.stderr
    assert "Usage: refllm batch" in answer("batch")


# --- Progress ------------------------------------------------------------------------------------


def progress(**values: Any) -> Progress:
    return Progress(
        **{"n_rows": 40, "n_all": 100, "n_new_rows": 20, "n_errors": 0, "n_tokens": 500, **values},
        fraction=0.25,
    )


def test_progress_has_rows_rate_and_time_left() -> None:
    # Twenty new rows in 10 seconds: the other sixty take 30.
    assert batch._described(progress(), 10) == "40 of 100 rows, 50 tokens/s, 0:00:30 left"
    # Of files of text only the part that is read is known: three quarters are left.
    described = batch._described(progress(n_all=None, n_errors=2), 1200)
    assert described == "40 rows, 0 tokens/s, 2 with an error, 1:00:00 left"


def test_progress_without_a_terminal_is_a_line_now_and_then(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LINE_SECONDS", 0.0)
    arguments = ("batch", "embed", docs, "--model", "tiny-embed", "--column", "body")
    result = refllm(*arguments, "--to", docs.parent / "out", "--part-rows", "4")
    assert re.fullmatch(r"(refllm: [489] rows, \d+ tokens/s, 0:\d\d:\d\d left\n){3}", result.stderr)
    assert refllm(*arguments, "--to", docs.parent / "quiet", "--quiet").stderr == ""


# --- The process ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path: Path) -> None:
    source = tmp_path / "docs.txt"
    source.write_text("".join(f"line {i} of a file with many lines\n" for i in range(20_000)))
    folder = tmp_path / "out"
    arguments = ["batch", "embed", str(source), "--to", str(folder), "--model", "tiny-embed"]
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, *arguments, "--part-rows", "8"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
    )
    deadline = time.monotonic() + HUNG_SECONDS
    while not list(folder.glob("part-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err
    assert b"the same command continues" in err
    parts = list(folder.glob("part-*"))
    assert 0 < len(parts) < 2500
    listed = json.loads((folder / MANIFEST).read_bytes())["parts"]
    assert len(parts) - len(listed) in (0, 1)  # a part appears before the manifest has it
    assert [part["rows"] for part in listed] == [8] * len(listed)
    assert not list(folder.glob(".*.unfinished"))
