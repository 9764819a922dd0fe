"""The tables of README.md, written from the results: no figure is typed by hand.

A table stands between two lines, `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.asked import ASKED, Ask, Latest, Measured, measured
from benchmarks.results import REFLLM, Entry, Figure

__all__ = ["latest_entries", "tables", "with_tables"]

MARKED = "<!-- begin {0} -->\n", "<!-- end {0} -->"
PLOT = "![each cost against what it grows with](growth.png)"
NOTHING = "Not measured yet.\n"


def latest_entries(entries: Sequence[Entry]) -> Latest:
    """The last complete runs of each benchmark on each CPU, oldest first.

    Shapes may have been measured in runs of their own: of each shape, the last run's figures.
    """
    latest: dict[str, list[Entry]] = {}
    for entry in reversed([entry for entry in entries if entry.is_complete]):
        all_chosen = latest.setdefault(entry.benchmark, [])
        chosen = [run for run in all_chosen if _cpu(run) == _cpu(entry)]
        later = {_shape(figure) for run in chosen for figure in run.figures}
        figures = [figure for figure in entry.figures if _shape(figure) not in later]
        if figures or not chosen:
            all_chosen.insert(0, replace(entry, figures=figures))
    return latest


def _cpu(entry: Entry) -> tuple[str, tuple[str, ...]]:
    """The CPU's name, and the features that tell one generation from another."""
    return entry.machine.cpu, entry.machine.cpu_flags


def _shape(figure: Figure) -> str | int | None:
    return figure.labels.get("shape")


def tables(latest: Latest) -> dict[str, str]:
    """The text of each table by name: `asked`, and one for each benchmark."""
    return {"asked": _asked_table(latest)} | {
        name: "\n".join(map(_entry_table, runs)) for name, runs in latest.items()
    }


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The text with everything between a table's markers replaced by the table.

    A pair of markers without a table says that nothing was measured. Errors: `ValueError` for a
    table without markers.
    """
    for name in tables:
        if MARKED[0].format(name) not in text:
            raise ValueError(f"there is no place for the table {name}")
    begin, end = MARKED[0].format("(.+?)"), MARKED[1].format(r"\1")

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        return MARKED[0].format(name) + tables.get(name, NOTHING) + MARKED[1].format(name)

    return re.sub(f"{begin}.*?{end}", replaced, text, flags=re.DOTALL)


def _asked_table(latest: Latest) -> str:
    on_the_last_cpu = {
        name: [run for run in runs if _cpu(run) == _cpu(runs[-1])] for name, runs in latest.items()
    }
    rows = [_asked_row(ask, measured(ask, on_the_last_cpu)) for ask in ASKED]
    return _table(("work", "asked", "beyond", "measured", "verdict"), rows)


def _asked_row(ask: Ask, found: Measured | None) -> tuple[str, ...]:
    sign = "≥" if ask.sense == "at least" else "≤"
    borders = (f"{sign} {ask.asked:g} {ask.unit}", f"{sign} {ask.beyond:g} {ask.unit}")
    if found is None:
        return (ask.text, *borders, "", "not measured")
    value, figure = found.worst
    best, _ = found.best
    text = f"{_number(value)} {ask.unit}"
    if best != value:
        text += f" ({_difference(ask, figure)}) to {_number(best)}"
    text += "".join(f"; {shape} not measured" for shape in found.missing_shapes)
    return (ask.text, *borders, text, found.verdict)


def _difference(ask: Ask, figure: Figure) -> str:
    """Which of the ask's figures this is: its labels that the ask leaves open."""
    values = (value for key, value in figure.labels.items() if len(ask.labels.get(key, ())) != 1)
    return " ".join(map(str, values))


def _entry_table(entry: Entry) -> str:
    """When, on what and with what it was measured; every figure; what was skipped."""
    lines = [_circumstances(entry), ""]
    compared = [figure for figure in entry.figures if "against" not in figure.labels]
    if compared:
        lines.append(_figures_table(compared))
    if entry.fits:
        rows = [(fit.cost, fit.against, f"{fit.exponent:.2f}") for fit in entry.fits]
        lines += [_table(("cost", "grows with", "exponent"), rows), PLOT, ""]
    lines += [f"- {what}: skipped, {reason}" for what, reason in entry.skipped.items()]
    return "\n".join(lines).rstrip("\n") + "\n"


def _circumstances(entry: Entry) -> str:
    machine = entry.machine
    kind = " (virtual machine)" if machine.is_virtual else ""
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{library} {number}" for library, number in of_each.items())
        for name, of_each in entry.versions.items()
    )
    flags = f" with {' '.join(machine.cpu_flags)}" if machine.cpu_flags else ""
    return (
        f"{entry.date}, revision {entry.revision}, numerics revision {entry.numerics_revision}, "
        f"{machine.cpu}{kind}{flags}, {entry.threads} threads "
        f"on {machine.n_cpus} CPUs, "
        f"{', '.join(machine.caches)}, {machine.memory_gib:g} GiB, {machine.kernel}; load average "
        f"{machine.load_average:g} before; median of {entry.rounds}."
        f"{f' {versions}.' if versions else ''}"
    )


def _figures_table(figures: Sequence[Figure]) -> str:
    peers = list(dict.fromkeys(peer for figure in figures for peer in figure.peers))
    header = ["work", "unit", "refllm", *(f"{peer} | ÷ {peer}" for peer in peers)]
    return _table(" | ".join(header).split(" | "), [_figure_row(f, peers) for f in figures])


def _figure_row(figure: Figure, peers: Sequence[str]) -> tuple[str, ...]:
    cells = [figure.name, figure.unit, _spread(figure, REFLLM)]
    for peer in peers:
        present = peer in figure.samples
        cells += [_spread(figure, peer), _number(figure.ratio(peer))] if present else ["", ""]
    return tuple(cells)


def _spread(figure: Figure, name: str) -> str:
    """The median, and the least and the largest sample."""
    samples = figure.samples[name]
    return f"{_number(figure.median(name))} ({_number(min(samples))}–{_number(max(samples))})"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
