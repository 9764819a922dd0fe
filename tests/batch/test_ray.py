"""What of a run on Ray needs no cluster; test_ray_cluster.py has the real ones."""

from __future__ import annotations

import random
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from refllm import InvalidInput, LlmError, LlmRuntimeError
from refllm.batch import Embedder
from refllm.batch import ray as on_ray
from refllm.batch.local import open_input
from refllm.batch.reader import Input, find_files
from refllm.batch.writer import model_sha256
from refllm.models.bundled import ROOT

MODEL = ROOT / "bert" / "tiny-embed.gguf"
NOTHING = frozenset[int]()


def rows_of(folder: Path, lines: str, *, part_rows: int, id_column: str | None = None) -> Input:
    (folder / "rows.jsonl").write_text(lines)
    files = find_files([str(folder / "rows.jsonl")])
    return open_input(Embedder(MODEL), files, id_column=id_column, part_rows=part_rows)


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:0", "head:65536", "ray://head:10001", "", "head:x"]
)
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="is no address of a Ray cluster"):
        on_ray.connected(address).__enter__()


def test_an_error_names_the_extra_where_ray_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in on_ray.ENVIRONMENT:
        monkeypatch.setenv(name, "0")
    with pytest.raises(LlmRuntimeError, match=r"needs the package ray\n.*\[ray\]"):
        on_ray.connected("auto").__enter__()


def test_a_closed_port_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LlmRuntimeError, match=f"no Ray cluster at 127.0.0.1:{port}: .*refused"):
        on_ray._require_answer(f"127.0.0.1:{port}")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "CONNECT", "import time; time.sleep(600)")  # as Ray's client does
    monkeypatch.setattr(on_ray, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LlmRuntimeError, match="what answers there is none"):
            on_ray._require_answer(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Version mismatch: Ray: 2.59.0 Python: 3.11.7", "Ray: 2.59.0"),
        ("ray.exceptions.AuthenticationError: token", "set RAY_AUTH_MODE=token"),
    ],
)
def test_the_reason_of_ray_is_in_the_error(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    monkeypatch.setattr(on_ray, "CONNECT", f"import sys; sys.exit({said!r})")
    with pytest.raises(LlmRuntimeError, match="cannot be used") as raised:
        on_ray._require_answer("auto")
    assert expected in str(raised.value)


def test_windows_are_numbered_in_their_part_and_the_last_of_each_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.batch.reader.WINDOW_ROWS", 2)
    rows = rows_of(tmp_path, '{"text": "a"}\n' * 10, part_rows=3)
    found = list(on_ray._numbered(rows, {1}))
    assert [
        (each.window.part, each.place, len(each.window.ids), each.window.is_last)
        for each in found
        if isinstance(each, on_ray._Numbered)
    ] == [(0, 0, 2, False), (0, 1, 1, True), (2, 0, 2, False), (2, 1, 1, True), (3, 0, 1, True)]
    assert len(found) == 5


def test_an_error_of_reading_comes_after_the_whole_parts_before_it(tmp_path: Path) -> None:
    lines = '{"text": "a", "id": 1}\n' * 120 + '{"text": "b", "id": "x"}\n'
    rows = rows_of(tmp_path, lines, part_rows=50, id_column="id")
    *before, error = on_ray._numbered(rows, NOTHING)
    assert [each.window.part for each in before if isinstance(each, on_ray._Numbered)] == [0, 1]
    assert isinstance(error, InvalidInput)
    assert "the id is 'x'" in str(error)


def test_parts_are_yielded_whole_whatever_the_order_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.batch.reader.WINDOW_ROWS", 2)
    rows = rows_of(tmp_path, '{"text": "a"}\n' * 41, part_rows=7)
    numbered = list(on_ray._numbered(rows, NOTHING))
    results = [
        on_ray._Result(each, pa.RecordBatch.from_pydict({"n": [i]}))
        for i, each in enumerate(numbered)
        if not isinstance(each, LlmError)
    ]
    for seed in range(20):
        random.Random(seed).shuffle(results)
        found = list(on_ray._whole_parts(results, rows))
        by_part: dict[int, list[int]] = {}
        for window, batch in found:
            by_part.setdefault(window.part, []).append(batch.column("n")[0].as_py())
        assert [window.part for window, _ in found] == [
            part for part, values in by_part.items() for _ in values
        ], "the windows of a part are apart"
        assert [by_part[part] for part in range(6)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9, 10, 11],
            [12, 13, 14, 15],
            [16, 17, 18, 19],
            [20, 21, 22],
        ]
        assert sum(window.is_last for window, _ in found) == 6


def test_a_node_refuses_other_versions_and_another_model(tmp_path: Path) -> None:
    asked = on_ray._Asked(
        function=Embedder(MODEL), versions=on_ray._versions(), sha256=model_sha256(MODEL), sent=None
    )
    assert asked.why_unusable() is None
    other = replace(asked, versions={**asked.versions, "refllm": "0.0.1"})
    assert "instead of 0.0.1" in str(other.why_unusable())
    absent = replace(asked, function=Embedder(tmp_path / "no.gguf"))
    assert str(absent.why_unusable()).startswith("there is no model at ")
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(MODEL.read_bytes() + b"\0")
    assert "has the SHA-256" in str(replace(asked, function=Embedder(changed)).why_unusable())
