"""A file that is no trace, or no whole one, gets an error with the file and the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from refllm import InvalidInput, LlmRuntimeError
from refllm.trace import Trace, open_trace, record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    to = tmp_path_factory.mktemp("trace") / "run.safetensors"
    return record("tiny-chat", "Once", to=to, only=["inp_embd", "result_output"])


def changed(run: Trace, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write the trace with other metadata, by the package safetensors."""
    with safe_open(run.path, framework="numpy") as file:
        stored = json.loads(file.metadata()["refllm.trace"])
    change(stored)
    save_file(load_file(run.path), to, {"refllm.trace": json.dumps(stored)})
    return to


def test_a_trace_that_another_program_wrote_is_read(run: Trace, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "other", lambda stored: stored.update(program=OTHER, more=1))
    other = open_trace(path)
    assert other.metadata.program.name == "other"
    assert other.metadata.calls == run.metadata.calls
    np.testing.assert_array_equal(other.value("inp_embd"), run.value("inp_embd"))


OTHER = {"name": "other", "version": "1"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda s: s.pop("model"), "model"),
        (lambda s: s.update(version="1"), "version"),
        (lambda s: s.update(format="x"), "format"),
        (lambda s: s["program"].pop("name"), "program.name"),
        (lambda s: s["program"].update(libraries={"numpy": 2}), "program.libraries"),
        (lambda s: s["calls"][0].update(first=-1), "calls[0].first"),
        (lambda s: s["calls"][0].update(n_tokens=9), "calls[0].n_tokens"),
        (lambda s: s["calls"][0].update(text=1), "calls[0].text"),
        (lambda s: s["calls"][0]["values"].append("inp_embd"), "calls[0].values"),
        (lambda s: s.update(calls=[1]), "calls"),
        (lambda s: s.update(calls=[]), "calls"),
        (lambda s: s.update(texts=[]), "texts"),
        (lambda s: s.update(params=1), "params"),
        (lambda s: s["texts"][0]["pieces"].pop(), "texts[0].pieces"),
        (lambda s: s["texts"][0].update(n_given=99), "texts[0].n_given"),
        (lambda s: s["texts"][0].update(token_ids=[True]), "texts[0].token_ids"),
        (lambda s: s["draws"][0].update(call=7), "draws[0].call"),
        (lambda s: s["draws"][0].update(u="x"), "draws[0].u"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_key_is_named_with_the_file(
    run: Trace, tmp_path: Path, change: Callable[[dict[str, Any]], object], key: str
) -> None:
    path = changed(run, tmp_path / "run", change)
    with pytest.raises(LlmRuntimeError, match=re.escape(f"{path}: key {key} of the trace's")):
        open_trace(path)


def test_a_newer_version_is_refused_with_the_remedy(run: Trace, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "run", lambda stored: stored.update(version=2))
    with pytest.raises(LlmRuntimeError, match=r"version 2 of the schema.*\n.*update refllm"):
        open_trace(path)


def test_an_array_that_is_missing_is_named(run: Trace, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "run", lambda s: s["calls"][0]["values"].append("l_out-9"))
    with pytest.raises(LlmRuntimeError, match="lacks the array calls/0/l_out-9"):
        open_trace(path)


@pytest.mark.parametrize("n_bytes", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(run: Trace, tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(run.path.read_bytes()[:n_bytes])
    with pytest.raises(LlmRuntimeError, match=f"{path}: is no trace: it is no whole safetensors"):
        open_trace(path)


@pytest.mark.parametrize("n_bytes", [-8, 0])
def test_a_file_that_changed_after_it_was_opened_is_not_read(
    run: Trace, tmp_path: Path, n_bytes: int
) -> None:
    content = run.path.read_bytes()
    path = tmp_path / "run"
    path.write_bytes(content)
    opened = open_trace(path)
    other = tmp_path / "other"
    other.write_bytes(content[: n_bytes or None])
    other.replace(path)
    with pytest.raises(LlmRuntimeError, match="changed since it was opened; open it again"):
        opened.value("inp_embd")
    path.unlink()
    with pytest.raises(LlmRuntimeError, match="cannot be read"):
        opened.value("inp_embd")


def test_a_model_is_no_trace(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(LlmRuntimeError, match=r"has no key 'refllm\.trace'"):
        open_trace(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["[", "[1]", '{"a": 1, "a": 2}', "[" * 100_000])
def test_metadata_that_are_no_json_object_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run"
    save_file({"a": np.zeros(1, np.float32)}, path, {"refllm.trace": text})
    with pytest.raises(LlmRuntimeError, match=re.escape(str(path))):
        open_trace(path)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file; to make a trace: refllm trace"):
        open_trace(tmp_path / "absent")
    with pytest.raises(InvalidInput, match="is a folder"):
        open_trace(tmp_path)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.float32(1), r"has the shape \[\]; an array must have at least one axis"),
        (np.zeros((0, 256), np.float32), r"has the shape \[0, 256\]; a value must have a number"),
        (np.zeros((2, 256), np.int64), "has the type int64; a value must have one of float16"),
    ],
)
def test_a_value_that_cannot_be_compared_is_named_with_the_file(
    run: Trace, tmp_path: Path, array: NDArray[Any], words: str
) -> None:
    path = with_array(run, tmp_path / "run", "calls/0/inp_embd", array)
    with pytest.raises(LlmRuntimeError, match=f"{re.escape(str(path))}: calls/0/inp_embd {words}"):
        open_trace(path).value("inp_embd")


def test_an_array_of_a_draw_without_an_axis_is_named(run: Trace, tmp_path: Path) -> None:
    path = with_array(run, tmp_path / "run", "draws/0/softmax/ids", np.int64(1))
    with pytest.raises(LlmRuntimeError, match=r"draws/0/softmax/ids has the shape \[\]"):
        open_trace(path).step(0)


def with_array(run: Trace, to: Path, key: str, array: NDArray[Any] | np.generic) -> Path:
    """Write the trace with another array, by the package safetensors."""
    with safe_open(run.path, framework="numpy") as file:
        stored = file.metadata()
    save_file(load_file(run.path) | {key: np.asarray(array)}, to, stored)
    return to


def test_a_value_that_is_not_there_gets_names_near_it(run: Trace) -> None:
    with pytest.raises(InvalidInput, match="call 0 has no value 'result_outputs'; near it are res"):
        run.value("result_outputs")
    with pytest.raises(InvalidInput, match="has no call 3; it has calls 0 to 0"):
        run.value("inp_embd", 3)
    with pytest.raises(InvalidInput, match="has no draw 1; it has 1"):
        run.step(1)
