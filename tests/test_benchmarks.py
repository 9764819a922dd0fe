"""The benchmarks run, compare fairly, and report what was measured. No test looks at a time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from benchmarks import __main__ as commands
from benchmarks import compare
from benchmarks.__main__ import FOLDER, app
from benchmarks.asked import ASKED, measured
from benchmarks.compare import Bench, Entrant, Options, Outcome, alternate, figure_of
from benchmarks.contestants.embedder import embed_sorted
from benchmarks.embed import model_tokenizer
from benchmarks.growth import exponent, fits_of
from benchmarks.llamas import require_different
from benchmarks.machine import this_machine
from benchmarks.peer import PROJECT, Contestant, Unavailable, contestant
from benchmarks.plot import plot_growth
from benchmarks.report import latest_entries, tables, with_tables
from benchmarks.results import REFLLM, Entry, Figure, Fit, append, read
from benchmarks.sources import sha256_of_sources
from benchmarks.synthetic import QUICK_SHAPE, SHAPES, model_file
from benchmarks.texts import real_sentences, uniform_texts
from refllm.weights import open_weights
from tests.model_files import tiny_bert_folder

COMMANDS = ("decode", "prefill", "load", "startup", "embed", "growth", "limits", "serve")
NOBODY = Path("no-such-python")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmarks' models are made in, once for all tests here."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_folder(tmp_path_factory.mktemp("bert"))


def quick_entry(work: Path, results: Path, *command: str) -> Entry:
    """What a quick run without peers keeps."""
    options = ["--quick", "--work", work, "--results", results, "--peer-python", NOBODY]
    outcome = CliRunner().invoke(app, [*map(str, options), *command], catch_exceptions=False)
    assert outcome.exit_code == 0
    return read(results)[-1]


def a_bench(rounds: int = 1) -> Bench:
    options = Options(
        work=Path(), python=NOBODY, peer_python=NOBODY, threads=1, rounds=rounds, is_quick=True
    )
    return Bench(options)


def an_entry(benchmark: str, *figures: Figure) -> Entry:
    return Entry(
        benchmark=benchmark,
        revision="0",
        date="2000-01-01T00:00:00+00:00",
        is_complete=True,
        machine=this_machine(),
        threads=2,
        rounds=1,
        versions={REFLLM: {"refllm": "1"}},
        figures=figures,
    )


def a_figure(unit: str = "tokens/s", *, refllm: float, **peers: float) -> Figure:
    """A figure of one sample each; in the peers' names, _ stands for a point."""
    samples = {name.replace("_", "."): [value] for name, value in peers.items()}
    labels = {"shape": "1.1B", "type": "F16", "numerics": "exact"}
    return Figure(labels=labels, unit=unit, samples={REFLLM: [refllm], **samples})


# --- Every benchmark, quickly ---------------------------------------------------------------------


@pytest.mark.parametrize("command", ["decode", "prefill", "load"])
def test_a_benchmark_of_llamas_runs_and_says_which_peer_was_missing(
    work: Path, tmp_path: Path, command: str
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", command, "--type", "F16")
    assert entry.figures
    for figure in entry.figures:
        assert figure.peers == ()
        assert len(figure.samples[REFLLM]) == 1
    assert str(NOBODY) in entry.skipped["llama.cpp"]


def test_types_that_only_llama_cpp_can_make_are_skipped_without_it(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "prefill", "--type", "Q4_K_M")
    assert entry.figures == []
    assert str(NOBODY) in entry.skipped["tiny Q4_K_M"]


def test_the_embedding_benchmark_runs_on_each_of_its_jobs(
    work: Path, bert: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "embed", "--model", str(bert))
    works = [figure.labels["work"] for figure in entry.figures]
    assert works == ["mixed lengths", "uniform length", "one sentence"]
    assert set(entry.skipped) == {"sentence-transformers", "onnxruntime"}


def test_the_startup_benchmark_runs(work: Path, data_dir: Path, tmp_path: Path) -> None:
    model = data_dir / "stories260K" / "stories260K.gguf"
    entry = quick_entry(work, tmp_path / "results.json", "startup", "--model", str(model))
    assert [figure.unit for figure in entry.figures] == ["s", "tokens/s"]


def test_the_limits_of_this_cpu_are_measured_with_two_roundings_and_with_one(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "limits")
    assert [figure.labels["operations"] for figure in entry.figures] == ["rounded twice", "fused"]
    assert all(figure.median(REFLLM) > 0 for figure in entry.figures)


def test_a_benchmark_that_cannot_make_its_model_says_in_a_line_what_is_missing(
    bert: Path, tmp_path: Path
) -> None:
    options = ["--quick", "--work", str(tmp_path), "--peer-python", str(tmp_path / "absent")]
    command = ["growth", "--model", str(bert), "--type", "Q8_0"]
    outcome = CliRunner().invoke(app, [*options, *command], catch_exceptions=False)
    assert outcome.exit_code == 1
    [line] = outcome.stderr.splitlines()
    assert "cannot be run" in line
    assert "--peer-python" in line


def test_the_growth_benchmark_fits_every_cost(work: Path, bert: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    entry = quick_entry(work, results, "growth", "--model", str(bert), "--type", "F16")
    assert {(fit.cost, fit.against) for fit in entry.fits} == {
        ("prefill", "prompt length"),
        ("decode a token", "prompt length"),
        ("decode a token each", "batch"),
        ("prefill", "parameters"),
        ("decode a token", "parameters"),
        ("embed", "batch"),
        ("embed", "text length"),
    }


def test_a_quick_run_is_not_reported(work: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    quick_entry(work, results, "prefill", "--type", "F16")
    assert latest_entries(read(results)) == {}


@pytest.mark.parametrize(
    ("library", "program"),
    [
        ("llama_cpp", "llama_cpp_llama"),
        ("torch", "torch_bert"),
        ("onnxruntime", "onnx_bert"),
    ],
)
def test_a_peer_whose_library_is_missing_says_so(
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


# --- The protocol and the turns -------------------------------------------------------------------


def test_what_a_library_prints_does_not_reach_the_driver() -> None:
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


def test_a_failure_in_a_contestant_is_told_with_its_reason() -> None:
    with (
        contestant("refllm_llama", python=Path(sys.executable), threads=1) as refllm,
        pytest.raises(Unavailable, match=r"nowhere\.gguf"),
    ):
        refllm.run("load", path="nowhere.gguf", threads=1, n_ctx=1)


def scripted(name: str, replies: Sequence[Mapping[str, Any]], requests: io.StringIO) -> Entrant:
    """An entrant whose answers are known beforehand."""
    lines = "".join(json.dumps(reply) + "\n" for reply in replies)
    program = Contestant(name, requests, io.StringIO(lines), io.StringIO())
    return Entrant(name, program, "run", {"who": name})


def test_entrants_take_turns_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "PAUSE", 0)
    requests = io.StringIO()
    a = scripted("a", [{"seconds": [s]} for s in (9, 1, 2)], requests)
    b = scripted("b", [{"seconds": [s]} for s in (9, 3, 4)], requests)
    outcomes = alternate([a, b], rounds=2, bench=a_bench())
    turns = [json.loads(line)["with"]["who"] for line in requests.getvalue().splitlines()]
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert outcomes == {"a": Outcome([1, 2]), "b": Outcome([3, 4])}


def test_an_entrant_that_fails_is_skipped_and_the_others_go_on(
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
    said = None
    try:
        require_different(outcomes, ("exact", "int8"))
    except ValueError as error:
        said = str(error)
    assert (said is None) == (refusal is None)
    assert (refusal or "") in (said or "")


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


# --- The work -------------------------------------------------------------------------------------


def test_a_synthetic_model_has_the_parameters_of_its_shape(work: Path) -> None:
    path = model_file(work, QUICK_SHAPE, "F16", peer_python=NOBODY)
    tensors = open_weights(path).tensors.values()
    n_weights = sum(np.prod(tensor.shape) for tensor in tensors if len(tensor.shape) == 2)
    assert n_weights == SHAPES[QUICK_SHAPE].n_parameters


def test_real_sentences_are_different_short_enough_and_the_same_each_time(bert: Path) -> None:
    tokenizer = model_tokenizer(bert)
    sentences = real_sentences(tokenizer, 50, max_tokens=40)
    assert len(set(sentences)) == 50
    assert max(len(tokenizer.encode(sentence).ids) for sentence in sentences) <= 40
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert sentences == real_sentences(tokenizer, 50, max_tokens=40)


def test_uniform_texts_all_have_the_length_asked_for(bert: Path) -> None:
    tokenizer = model_tokenizer(bert)
    texts = uniform_texts(tokenizer, 5, 20)
    assert [len(tokenizer.encode(text).ids) for text in texts] == [20] * 5


def test_sorted_batches_give_the_embeddings_back_in_the_order_of_the_texts() -> None:
    widths = []

    def sums(token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        widths.append(token_ids.shape[1])
        embeddings: NDArray[np.float32] = (token_ids * mask).sum(1, keepdims=True).astype("f4")
        return embeddings

    texts = [[1], [2, 3, 4], [5, 6], [7, 8, 9, 10], [11]]
    embeddings = embed_sorted(sums, texts, 2)
    assert embeddings[:, 0].tolist() == [1, 9, 11, 34, 11]
    assert widths == [4, 2, 1]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    x = [1.0, 2.0, 8.0, 64.0]
    assert exponent(x, [3 * value**power for value in x]) == pytest.approx(power)


def growing(cost: str, points: Mapping[int, float]) -> list[Figure]:
    return [
        Figure(labels={"cost": cost, "against": "batch", "x": x}, unit="ms", samples={REFLLM: [y]})
        for x, y in points.items()
    ]


def test_each_cost_is_fitted_by_itself() -> None:
    figures = [*growing("a", {1: 1, 2: 2}), *growing("b", {1: 1, 2: 4}), a_figure(refllm=1)]
    fits = fits_of(figures)
    assert [(fit.cost, round(fit.exponent, 6)) for fit in fits] == [("a", 1), ("b", 2)]


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fit = Fit(cost="a", against="batch", exponent=1.0)
    entry = replace(an_entry("growth", *growing("a", {1: 1, 2: 2})), fits=[fit])
    plot_growth(entry, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG\r\n")


# --- Results and report ---------------------------------------------------------------------------


def test_results_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    entries = [an_entry("decode", a_figure(refllm=3, llama_cpp=2)), an_entry("load")]
    for entry in entries:
        append(path, entry)
    assert [entry.benchmark for entry in read(path)] == ["decode", "load"]
    assert read(path)[0].figures == list(entries[0].figures)
    assert json.loads(path.read_text("utf-8"))[0]["figures"][0]["ratio"] == {"llama.cpp": 1.5}


@pytest.mark.parametrize(
    ("unit", "best"),
    [("texts/s", 8 / 4), ("ms", 8 / 2)],  # of the peers' 2 and 4, more is a better rate
)
def test_the_best_peer_is_the_one_that_is_hardest_to_beat(unit: str, best: float) -> None:
    figure = a_figure(unit, refllm=8, a=2, b=4)
    assert figure.ratio_to_best(among=("a", "b", "absent")) == best
    assert figure.ratio_to_best(among=("absent",)) is None


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [((1.2, 1.5), "beyond"), ((1.05, 1.5), "reached"), ((0.99, 1.5), "missed")],
)
def test_the_worst_figure_decides_whether_what_is_asked_is_reached(
    ratios: Sequence[float], verdict: str
) -> None:
    ask = ASKED[0]  # decode F16 and Q8_0: at least 1.0, beyond 1.1
    figures = [a_figure(refllm=ratio, llama_cpp=1.0) for ratio in ratios]
    found = measured(ask, {"decode": [an_entry("decode", *figures)]})
    assert found is not None
    assert (found.worst[0], found.best[0], found.verdict) == (*ratios, verdict)


def test_where_less_is_asked_for_the_largest_figure_decides() -> None:
    ask = next(ask for ask in ASKED if "warm cache" in ask.text)  # at most 1.2 s, beyond 0.7
    labels = {"work": "refllm infer", "cache": "warm"}
    figures = [
        Figure(labels=labels, unit="s", samples={REFLLM: [seconds]}) for seconds in (0.5, 1.0)
    ]
    found = measured(ask, {"startup": [an_entry("startup", *figures)]})
    assert found is not None
    assert (found.worst[0], found.verdict) == (1.0, "reached")


def of_shape(shape: str, ratio: float) -> Figure:
    labels = {"work": "prefill", "shape": shape, "type": "F16", "numerics": "exact"}
    samples = {REFLLM: [ratio], "llama.cpp": [1.0]}
    return Figure(labels=labels, unit="tokens/s", samples=samples)


def test_shapes_measured_in_runs_of_their_own_are_reported_together() -> None:
    runs = [[of_shape("1.1B", 0.5)], [of_shape("7B-8-layers", 2.0)], [of_shape("1.1B", 1.5)]]
    latest = latest_entries([an_entry("prefill", *figures) for figures in runs])
    assert [run.figures for run in latest["prefill"]] == [runs[1], runs[2]]
    ask = next(ask for ask in ASKED if ask.text == "prefill F16 (exact)")
    found = measured(ask, latest)
    assert found is not None
    assert (found.worst[0], found.best[0], found.missing_shapes) == (1.5, 2.0, [])


def test_a_shape_that_was_not_measured_is_named() -> None:
    latest = latest_entries([an_entry("prefill", of_shape("1.1B", 1.5))])
    assert "1.5 ×; 7B-8-layers not measured" in tables(latest)["asked"]


def test_what_was_not_measured_is_not_judged() -> None:
    assert {measured(ask, {}) for ask in ASKED} == {None}


def test_a_table_replaces_what_stands_between_its_markers() -> None:
    text = "before\n<!-- begin a -->\nold\n<!-- end a -->\nafter\n"
    once = with_tables(text, {"a": "new\n"})
    assert once == "before\n<!-- begin a -->\nnew\n<!-- end a -->\nafter\n"
    assert with_tables(once, {"a": "new\n"}) == once


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place for the table b"):
        with_tables("text", {"b": "new\n"})


def test_the_readme_has_a_place_for_every_benchmark() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    figure = a_figure(refllm=1.25, llama_cpp=1.0)
    latest = {command: [an_entry(command, figure)] for command in COMMANDS}
    written = with_tables(readme, tables(latest))
    assert written.count("| 1.25 (1.25–1.25) | 1 (1–1) | 1.25 |") == len(COMMANDS)
    assert "| ≥ 1 × | ≥ 1.1 × | 1.25 ×; 7B-8-layers not measured | beyond |" in written
