"""Contestants take turns and are compared fairly; a failure is reported with its reason."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as commands
from benchmarks import compare
from benchmarks.compare import Entrant, Outcome, alternate, figure_of, require_tokens
from benchmarks.llamas import require_different
from benchmarks.peer import PROJECT, Contestant, Unavailable, contestant
from benchmarks.results import REFLLM, read
from benchmarks.serve import play
from benchmarks.sources import sha256_of_sources
from tests.support.benchmark_runs import a_bench, a_figure
from tests.support.client import eventually


def test_the_output_of_a_library_does_not_reach_the_driver() -> None:
    program = """if True:
        from benchmarks.contestants.serve import serve
        def noisy(text):
            print("a banner")
            return {"said": text}
        serve({"speak": noisy})"""
    request = json.dumps({"run": "speak", "with": {"text": "hello"}})
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        input=f"{request}\n",
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert json.loads(process.stdout) == {"said": "hello"}
    assert process.stderr == "a banner\n"


def test_a_failure_of_a_contestant_is_reported_with_its_reason() -> None:
    with (
        contestant("refllm_llama", python=Path(sys.executable), threads=1) as refllm,
        pytest.raises(Unavailable, match=r"nowhere\.gguf"),
    ):
        refllm.run("load", path="nowhere.gguf", threads=1, n_ctx=1)


def variables_of(process_id: int) -> list[bytes]:
    """The environment of a process, which the system shows a moment after its start."""
    file = Path(f"/proc/{process_id}/environ")
    eventually(lambda: file.read_bytes() != b"")
    return file.read_bytes().split(b"\0")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="/proc is Linux's")
def test_a_contestant_does_not_inherit_how_threads_wait_but_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("A_VARIABLE", "kept")
    for environment, is_there in ((None, False), ({"OMP_WAIT_POLICY": "active"}, True)):
        python = Path(sys.executable)
        with contestant(
            "refllm_llama", python=python, threads=3, environment=environment
        ) as refllm:
            variables = variables_of(refllm.process_id)
        assert {b"A_VARIABLE=kept", b"OMP_NUM_THREADS=3"} <= set(variables)
        assert b"OMP_WAIT_POLICY=passive" not in variables
        assert (b"OMP_WAIT_POLICY=active" in variables) == is_there


@pytest.mark.parametrize(
    ("library", "program"),
    [
        ("llama_cpp", "llama_cpp_llama"),
        ("torch", "torch_bert"),
        ("onnxruntime", "onnx_bert"),
    ],
)
def test_a_peer_without_its_library_reports_the_missing_library(
    library: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found before one that is installed, and says what Python says where none is.
    absent = f"raise ModuleNotFoundError(\"No module named '{library}'\")\n"
    (tmp_path / f"{library}.py").write_text(absent)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        contestant(program, python=Path(sys.executable), threads=1) as peer,
        pytest.raises(Unavailable, match=f"No module named '{library}'"),
    ):
        peer.run("load")


def scripted(name: str, replies: Sequence[Mapping[str, Any]], requests: io.StringIO) -> Entrant:
    """An entrant whose answers are known beforehand."""
    lines = "".join(json.dumps(reply) + "\n" for reply in replies)
    program = Contestant(name, requests, io.StringIO(lines), io.StringIO(), 0)
    return Entrant(name, program, "run", {"who": name})


def test_entrants_take_turns_each_is_first_once_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "PAUSE", 0)
    requests = io.StringIO()
    a = scripted("a", [{"seconds": [s]} for s in (9, 1, 2)], requests)
    b = scripted("b", [{"seconds": [s]} for s in (9, 3, 4)], requests)
    outcomes = alternate([a, b], rounds=2, bench=a_bench())
    turns = [json.loads(line)["with"]["who"] for line in requests.getvalue().splitlines()]
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert outcomes == {"a": Outcome([1, 2]), "b": Outcome([3, 4])}


def test_a_failing_entrant_is_skipped_and_the_rest_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "PAUSE", 0)
    requests = io.StringIO()
    a = scripted("a", [{"seconds": [1]}, {"error": "no memory"}], requests)
    b = scripted("b", [{"seconds": [s]} for s in (1, 2, 3)], requests)
    bench = a_bench()
    outcomes = alternate([a, b], rounds=2, bench=bench)
    assert outcomes == {"b": Outcome([2, 3])}
    assert bench.skipped == {"a, run": "a: no memory"}


def test_a_figure_holds_rates_or_times_and_how_far_answers_differ() -> None:
    outcomes = {REFLLM: Outcome([2.0], [1.0, 5.0]), "peer": Outcome([4.0], [1.5, 5.0])}
    rate = figure_of({"work": "w"}, outcomes, unit="tokens/s", amount=8)
    time = figure_of({"work": "w"}, outcomes, unit="ms", amount=8)
    assert rate.samples == {REFLLM: [4.0], "peer": [2.0]}
    assert time.samples == {REFLLM: [250.0], "peer": [500.0]}
    assert rate.differences == {"peer": 0.5}
    assert (rate.ratio("peer"), time.ratio("peer")) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("of_int8", "refusal"),
    [([0.5, 2.0], "exact and int8 gave the same logits"), ([0.5, 2.1], None)],
)
def test_numerics_are_refused_as_mislabeled_where_their_logits_are_the_same(
    of_int8: list[float], refusal: str | None
) -> None:
    outcomes = {"exact": Outcome([1.0], [0.5, 2.0]), "int8": Outcome([1.0], of_int8)}
    message = None
    try:
        require_different(outcomes, ("exact", "int8"))
    except ValueError as error:
        message = str(error)
    assert (message is None) == (refusal is None)
    assert (refusal or "") in (message or "")


def test_a_program_that_computes_another_number_of_tokens_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "PAUSE", 0)
    requests = io.StringIO()
    a = scripted("a", [{"seconds": [1], "n_tokens": 16}] * 2, requests)
    b = scripted("b", [{"seconds": [1], "n_tokens": 15}] * 2, requests)
    outcomes = alternate([a, b], rounds=1, bench=a_bench())
    with pytest.raises(ValueError, match="b computed 15 tokens instead of 16"):
        require_tokens(outcomes, 16)
    require_tokens({"a": outcomes["a"]}, 16)


def test_a_client_whose_request_fails_stops_the_benchmark_with_the_answer() -> None:
    class Full(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(503, "the queue is full")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(Unavailable, match=r"(?s)/infer: 503 .*the queue is full"):
                play(url, 2, [("/infer", {})], 30.0)
        finally:
            server.shutdown()
            thread.join()


def test_any_change_of_the_sources_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = sha256_of_sources(tmp_path)
    assert sha256_of_sources(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert sha256_of_sources(tmp_path) != before


def test_a_run_during_which_the_sources_changed_is_not_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hashes = iter(["before", "after"])
    monkeypatch.setattr(commands, "sha256_of_sources", lambda: next(hashes))
    options = replace(a_bench().options, is_quick=False)
    session = commands.Session(options, tmp_path / "results.json")
    session.run("decode", lambda bench: bench.add(a_figure(refllm=1)))
    entry = read(tmp_path / "results.json")[0]
    assert not entry.is_complete
    assert "changed" in entry.skipped["report"]
