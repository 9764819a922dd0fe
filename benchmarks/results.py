"""What was measured, and the JSON file that keeps every run of every benchmark."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine
from refllm.interface import NUMERICS_REVISION

__all__ = ["LESS_IS_BETTER", "REFLLM", "Entry", "Figure", "Fit", "append", "read"]

REFLLM = "refllm"
LESS_IS_BETTER = frozenset({"s", "ms", "× file", "GB"})
DIGITS = 5  # of a number in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured, by refllm and by its peers.

    `labels` say what, `samples` hold every sample of each contestant in `unit` and in the order
    in which they were taken, `differences` how far each peer's answer was from refllm's at most.
    """

    labels: Mapping[str, str | int]
    unit: str
    samples: Mapping[str, Sequence[float]]
    differences: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The labels' values."""
        return " ".join(map(str, self.labels.values()))

    @property
    def peers(self) -> tuple[str, ...]:
        """All programs but refllm."""
        return tuple(name for name in self.samples if name != REFLLM)

    def median(self, contestant: str) -> float:
        """The median of a contestant's samples."""
        return statistics.median(self.samples[contestant])

    def ratio(self, peer: str) -> float:
        """refllm's median divided by the peer's."""
        return self.median(REFLLM) / self.median(peer)

    def ratio_to_best(self, *, among: Sequence[str]) -> float | None:
        """`ratio` to the peer that did best, None where none of them took part."""
        ratios = [self.ratio(peer) for peer in among if peer in self.samples]
        choose = max if self.unit in LESS_IS_BETTER else min
        return choose(ratios, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """cost ∝ x^exponent, by least squares on logarithms."""

    cost: str
    against: str
    exponent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run of one benchmark. `date` is UTC; `skipped` says why something could not be measured.

    `revision` is git's name of the sources at the start, `numerics_revision` that of the rule by
    which they compute. A quick run, one of chosen models only, or one during which the sources
    changed, is not complete, and not reported.
    """

    benchmark: str
    revision: str
    date: str
    is_complete: bool
    machine: Machine
    threads: int
    rounds: int
    versions: Mapping[str, Mapping[str, str]]
    figures: Sequence[Figure]
    fits: Sequence[Fit] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    numerics_revision: int = NUMERICS_REVISION


def append(path: Path, entry: Entry) -> None:
    """Add the entry to the end of the file, which begins to exist where there is none."""
    entries: list[Any] = json.loads(path.read_text("utf-8")) if path.exists() else []
    entries.append(_as_json(entry))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def read(path: Path) -> list[Entry]:
    """Every entry of the file, oldest first; none where there is no file."""
    if not path.exists():
        return []
    return [_from_json(record) for record in json.loads(path.read_text("utf-8"))]


def _as_json(entry: Entry) -> dict[str, Any]:
    """The entry, with each figure's medians and ratios written out for other programs."""
    record = dataclasses.asdict(entry)
    for figure, said in zip(entry.figures, record["figures"], strict=True):
        said["median"] = {name: figure.median(name) for name in figure.samples}
        said["ratio"] = {peer: figure.ratio(peer) for peer in figure.peers}
    rounded: dict[str, Any] = _rounded(record)
    return rounded


def _from_json(record: dict[str, Any]) -> Entry:
    derived = ("median", "ratio")
    figures = [
        Figure(**{key: value for key, value in said.items() if key not in derived})
        for said in record["figures"]
    ]
    fits = [Fit(**said) for said in record["fits"]]
    machine = Machine(**record["machine"])
    older = {"numerics_revision": 1}  # entries of the time before there were two
    return Entry(**(older | record | {"figures": figures, "fits": fits, "machine": machine}))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
