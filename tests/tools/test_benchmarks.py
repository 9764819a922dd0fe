"""Every benchmark runs, without peers too. No test looks at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import taps
from benchmarks.__main__ import app
from benchmarks.asked import ASKED
from benchmarks.components import ONE_PROCESS, WORKS
from benchmarks.documents import RAY_DATA
from benchmarks.guests import GUESTS
from benchmarks.report import latest_entries
from benchmarks.results import REFLLM, read
from benchmarks.reuse import WITHOUT
from benchmarks.serve import ONE_CLIENT
from benchmarks.sharing import QUICK_SITUATIONS
from refllm.llama import Segment
from refllm.models.load import NUMERICS, LlamaModel, load_path
from tests.support.benchmark_runs import NO_PYTHON, quick_entry

MEMORY = ["peak memory", "anonymous memory"] if Path("/proc/self/status").exists() else []


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmarks' models are made in, once for all tests here."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def bert(tiny_models: Path) -> Path:
    return tiny_models / "embedder"


@pytest.mark.parametrize(
    "command", ["decode", "prefill", pytest.param("load", marks=pytest.mark.slow)]
)
def test_a_benchmark_of_llamas_runs_and_names_the_missing_peer(
    work: Path, tmp_path: Path, command: str
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", command, "--type", "F16")
    assert entry.figures
    for figure in entry.figures:
        assert figure.peers == ()
        assert len(figure.samples[REFLLM]) == 1
    assert str(NO_PYTHON) in entry.skipped["llama.cpp"]


def test_decoding_is_measured_with_the_calls_of_a_tap_and_without(
    tmp_path: Path, tiny_models: Path
) -> None:
    model = tiny_models / "flat.gguf"
    [figure] = quick_entry(tmp_path, tmp_path / "r.json", "taps", "--model", str(model)).figures
    assert figure.samples.keys() == {REFLLM, taps.WITHOUT}
    assert figure.peers == (taps.WITHOUT,)


def test_no_call_of_a_tap_is_left_in_the_network_without_them(tiny_models: Path) -> None:
    model = load_path(tiny_models / "flat.gguf")
    assert isinstance(model, LlamaModel)
    logits, seen = [], []
    for network in (model.network, taps.without_taps(model.network)):
        names: list[str] = []
        [found] = network.forward(
            [Segment([1, 2], model.new_cache())], tap=lambda name, _array, to=names: to.append(name)
        )
        logits.append(found.tobytes())
        seen.append(len(names))
    assert logits[0] == logits[1]
    assert seen[0] > 10
    assert seen[1] == 0


@pytest.mark.slow
def test_a_loading_is_measured_in_a_cold_round_and_in_warm_ones(work: Path, tmp_path: Path) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "load", "--type", "F16")
    works = [figure.labels["work"] for figure in entry.figures if "weights" not in figure.labels]
    assert works[: len(works) // 2] == ["load", "load and first token", *MEMORY]
    assert works[len(works) // 2 :] == [f"cold {work}" for work in works[: len(works) // 2]]


def test_texts_together_are_measured_in_batches_and_each_draws_its_tokens(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(
        work, tmp_path / "results.json", "batch", "--type", "F16", "--texts", "5", "--texts", "2"
    )
    assert [figure.labels["texts"] for figure in entry.figures] == [5, 2]
    assert {figure.unit for figure in entry.figures} == {"tokens/s"}
    assert not entry.is_complete
    assert str(NO_PYTHON) in entry.skipped["llama.cpp"]


def test_the_first_token_is_measured_after_a_new_prompt_and_after_a_kept_one(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "first-token", "--type", "F16")
    works = [(figure.labels["work"], figure.labels["tokens"]) for figure in entry.figures]
    assert works == [("new prompt", 16), ("kept prompt", 16)]
    assert str(NO_PYTHON) in entry.skipped["llama.cpp"]


def test_types_that_only_llama_cpp_can_make_are_skipped_without_it(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "prefill", "--type", "Q4_K_M")
    assert entry.figures == []
    assert str(NO_PYTHON) in entry.skipped["tiny Q4_K_M"]


@pytest.mark.slow
def test_the_embedding_benchmark_runs_on_each_of_its_jobs(
    work: Path, bert: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "embed", "--model", str(bert))
    works = [figure.labels["work"] for figure in entry.figures]
    jobs = ["mixed lengths", "uniform length", "one sentence"]
    assert works == [name for job in jobs for name in (job, f"{job}, int8 Q8_0")]
    assert set(entry.skipped) == {"sentence-transformers", "onnxruntime"}


@pytest.mark.slow
def test_files_of_documents_and_of_prompts_are_measured_and_judged(
    work: Path, bert: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="install refllm[ray] to test it")
    entry = quick_entry(work, tmp_path / "results.json", "documents", "--model", str(bert))
    works = [(figure.labels["work"], figure.labels["model"]) for figure in entry.figures]
    memory = ["peak memory"] if MEMORY else []
    models = ("tiny-embed", "all-MiniLM-L6-v2")
    vectors = [(work, model) for model in models for work in ("vectors", *memory)]
    vectors.insert(vectors.index(("vectors", models[1])) + 1, ("vectors on Ray", models[1]))
    assert works == [*vectors, ("texts", "tiny-chat")]
    assert set(entry.skipped) == {"sentence-transformers", RAY_DATA, "llama.cpp"}
    asks = [ask for ask in ASKED if ask.benchmark == "documents"]
    asks_of_refllm = [ask for ask in asks if not set(ask.peers) & set(entry.skipped)]
    assert len(asks_of_refllm) == len(asks) - 3  # beside sentence-transformers
    for ask in asks_of_refllm:
        judged = [figure for figure in entry.figures if ask.applies_to(figure)]
        assert {peer for figure in judged for peer in figure.peers} >= set(ask.peers)
        assert judged or not memory


@pytest.mark.slow
def test_the_startup_benchmark_runs(work: Path, data_dir: Path, tmp_path: Path) -> None:
    model = data_dir / "stories260K" / "stories260K.gguf"
    entry = quick_entry(work, tmp_path / "results.json", "startup", "--model", str(model))
    assert [figure.unit for figure in entry.figures] == ["s", "tokens/s"]


@pytest.mark.slow
def test_each_way_to_run_threads_is_measured_beside_busy_processes(
    work: Path, data_dir: Path, tmp_path: Path
) -> None:
    model = data_dir / "stories260K" / "stories260K.gguf"
    entry = quick_entry(work, tmp_path / "results.json", "sharing", "--model", str(model))
    situations = [figure.labels["beside"] for figure in entry.figures]
    assert {*situations, *entry.skipped} == set(QUICK_SITUATIONS)
    assert situations[:2] == ["idle", "one busy process"]
    assert all(figure.peers == ("one thread",) for figure in entry.figures)


@pytest.mark.slow
def test_what_is_asked_of_eight_clients_is_judged_by_eight_beside_one(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "serve")
    figures = [figure for figure in entry.figures if "numerics" in figure.labels]
    assert [figure.labels["numerics"] for figure in figures] == list(NUMERICS)
    asks = [ask for ask in ASKED if ask.benchmark == "serve"]
    assert len(asks) == len(figures)
    for ask, figure in zip(asks, figures, strict=True):
        assert figure.peers == ask.peers == (ONE_CLIENT,)
        # A quick run has the model that is bundled, in the place of the 1.1B.
        full = replace(figure, labels={**figure.labels, "model": "1.1B-Q8_0"})
        assert [each for each in asks if each.applies_to(full)] == [ask]


@pytest.mark.slow
def test_components_are_measured_for_eight_clients_and_for_one(work: Path, tmp_path: Path) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "components")
    if not entry.figures:
        pytest.skip(entry.skipped["processes"])
    assert [figure.labels["component"] for figure in entry.figures] == list(WORKS)
    assert all(figure.peers == (ONE_CLIENT, ONE_PROCESS) for figure in entry.figures)
    (ask,) = [ask for ask in ASKED if ask.benchmark == "components"]
    waiting = [figure for figure in entry.figures if ask.applies_to(figure)]
    assert waiting == list(entry.figures[:2])


def test_a_prompt_is_measured_new_and_repeated_with_the_cache_and_without(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "reuse")
    measured = [(figure.labels["work"], figure.labels["numerics"]) for figure in entry.figures]
    works = ("new prompt", "repeated prompt")
    assert measured == [(work, numerics) for numerics in NUMERICS for work in works]
    assert all(figure.peers == (WITHOUT,) for figure in entry.figures)


@pytest.mark.network  # the SDKs that guests are built with
def test_each_sdk_s_guest_is_measured_from_its_file_to_its_responses(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "guests")
    works = ["size", "first response, compiled", "first response, kept code", "a response"]
    measured = [(figure.labels["guest"], figure.labels["work"]) for figure in entry.figures]
    missing = entry.skipped.keys()
    assert measured == [(name, work) for work in works for name in GUESTS if name not in missing]
    assert len(missing) < len(GUESTS)
    assert all(figure.median(REFLLM) > 0 for figure in entry.figures)


def test_the_limits_of_this_cpu_are_measured_with_two_roundings_and_with_one(
    work: Path, tmp_path: Path
) -> None:
    entry = quick_entry(work, tmp_path / "results.json", "limits")
    assert [figure.labels["operations"] for figure in entry.figures] == ["rounded twice", "fused"]
    assert all(figure.median(REFLLM) > 0 for figure in entry.figures)


def test_a_benchmark_that_cannot_make_its_model_names_the_missing_option(
    bert: Path, tmp_path: Path
) -> None:
    options = ["--quick", "--work", str(tmp_path), "--peer-python", str(tmp_path / "absent")]
    command = ["growth", "--model", str(bert), "--type", "Q8_0"]
    outcome = CliRunner().invoke(app, [*options, *command], catch_exceptions=False)
    assert outcome.exit_code == 1
    [line] = outcome.stderr.splitlines()
    assert "cannot be run" in line
    assert "--peer-python" in line


@pytest.mark.slow
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
