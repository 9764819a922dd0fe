"""What was measured is kept, fitted, judged and reported."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_group

from benchmarks.__main__ import FOLDER, app
from benchmarks.asked import ASKED, measured
from benchmarks.growth import exponent, fits_of
from benchmarks.plot import plot_growth
from benchmarks.report import latest_entries, tables, with_tables
from benchmarks.results import REFLLM, Figure, Fit, append, read
from refllm import NUMERICS_REVISION
from tests.support.benchmark_runs import COMMANDS, a_figure, an_entry


def test_results_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    entries = [an_entry("decode", a_figure(refllm=3, llama_cpp=2)), an_entry("load")]
    for entry in entries:
        append(path, entry)
    assert [entry.benchmark for entry in read(path)] == ["decode", "load"]
    assert read(path)[0].figures == list(entries[0].figures)
    assert json.loads(path.read_text("utf-8"))[0]["figures"][0]["ratio"] == {"llama.cpp": 1.5}


def test_an_entry_names_its_numerics_revision_which_was_1_before_there_were_two(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.json"
    append(path, an_entry("decode"))
    assert read(path)[0].numerics_revision == NUMERICS_REVISION
    [record] = json.loads(path.read_text("utf-8"))
    del record["numerics_revision"]
    path.write_text(json.dumps([record]), "utf-8")
    assert read(path)[0].numerics_revision == 1


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
    ask = ASKED[0]  # decode F16 and Q8_0: at least 1.0, beyond 1.15
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


def test_unmeasured_figures_are_not_judged() -> None:
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
    assert "| ≥ 1 × | ≥ 1.15 × | 1.25 ×; 7B-8-layers not measured | beyond |" in written


def test_the_readme_names_each_command_and_what_it_measures() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    shown = re.findall(r"^\$ python -m benchmarks(?: --peer-python \S+)? (\S+)$", readme, re.M)
    described = [
        name
        for names in re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", readme, re.M)
        for name in re.findall(r"[a-z-]+", names)
    ]
    registered = set(get_group(app).commands)
    assert set(shown) == registered
    assert len(shown) == len(registered)
    assert registered - {"report"} <= set(described)
    assert registered - {"report"} == set(COMMANDS)


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
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    fit = Fit(cost="a", against="batch", exponent=1.0)
    entry = replace(an_entry("growth", *growing("a", {1: 1, 2: 2})), fits=[fit])
    plot_growth(entry, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG\r\n")
