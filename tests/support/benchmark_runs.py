"""Benchmarks run quickly, and results made by hand, for the tests of the benchmarks."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.compare import Bench, Options
from benchmarks.machine import this_machine
from benchmarks.results import REFLLM, Entry, Figure, read

__all__ = ["COMMANDS", "NO_PYTHON", "a_bench", "a_figure", "an_entry", "quick_entry"]

COMMANDS = (
    *("decode", "prefill", "load", "startup", "embed", "growth", "limits", "serve", "sharing"),
    *("reuse", "batch", "first-token", "taps", "guests", "components", "documents"),
)
NO_PYTHON = Path("no-such-python")


def quick_entry(work: Path, results: Path, *command: str) -> Entry:
    """What a quick run without peers keeps."""
    options = ["--quick", "--work", work, "--results", results, "--peer-python", NO_PYTHON]
    outcome = CliRunner().invoke(app, [*map(str, options), *command], catch_exceptions=False)
    assert outcome.exit_code == 0
    return read(results)[-1]


def a_bench(rounds: int = 1) -> Bench:
    options = Options(
        work=Path(),
        python=NO_PYTHON,
        peer_python=NO_PYTHON,
        threads=1,
        rounds=rounds,
        is_quick=True,
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
