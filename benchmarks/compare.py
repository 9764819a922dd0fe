"""Side by side: every entrant in turn, round after round, so that all see the same machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peer import Contestant, Unavailable, contestant
from benchmarks.results import REFLLM, Figure

__all__ = [
    "Bench",
    "Entrant",
    "Options",
    "Outcome",
    "alternate",
    "figure_of",
    "forget",
    "read_through",
    "require_tokens",
]

PAUSE = 0.1  # seconds between turns: threads of the one before stop waiting for more work


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure. `work` keeps what is made for the benchmarks: model files, graphs."""

    work: Path
    python: Path
    peer_python: Path
    threads: int
    rounds: int
    is_quick: bool


@dataclass(slots=True)
class Bench:
    """A run under way: what is known so far."""

    options: Options
    figures: list[Figure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        """Keep a figure, and show it."""
        self.figures.append(figure)
        medians = ", ".join(f"{name} {figure.median(name):.4g}" for name in figure.samples)
        ratios = "".join(f"; ÷ {peer} {figure.ratio(peer):.2f}" for peer in figure.peers)
        print(f"{figure.name}: {medians} {figure.unit}{ratios}", flush=True)

    def skip(self, what: str, reason: object) -> None:
        """Remember that something could not be measured, and show it."""
        if what not in self.skipped:
            self.skipped[what] = str(reason)
            print(f"{what}: skipped ({reason})", flush=True)

    def contestant(
        self, program: str, *, is_peer: bool, environment: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Contestant]:
        """A contestant in the interpreter it belongs to, with as many threads as all others."""
        python = self.options.peer_python if is_peer else self.options.python
        threads = self.options.threads
        return contestant(program, python=python, threads=threads, environment=environment)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A contestant's name in the results, its process, and what it is asked to do in each turn.

    `warm_up` is asked in the round that does not count, the same where there is none.
    """

    name: str
    contestant: Contestant
    action: str
    arguments: Mapping[str, Any]
    warm_up: Mapping[str, Any] | None = None

    def turn(self, *, counts: bool = True) -> Mapping[str, Any]:
        """One turn's answer. Errors: `Unavailable`."""
        arguments = self.arguments if counts or self.warm_up is None else self.warm_up
        return self.contestant.run(self.action, **arguments)


@dataclass(slots=True)
class Outcome:
    """An entrant's seconds, one for each round, its last answer, and how many tokens that cost."""

    seconds: list[float] = field(default_factory=list)
    answer: Sequence[float] = ()
    n_tokens: int | None = None

    def difference(self, other: Outcome) -> float:
        """The largest difference of the answers' numbers."""
        pairs = zip(self.answer, other.answer, strict=True)
        return max((abs(a - b) for a, b in pairs), default=0.0)


def alternate(entrants: Sequence[Entrant], *, rounds: int, bench: Bench) -> dict[str, Outcome]:
    """The outcomes by name, after one round that does not count.

    A turn may answer with several times; their median is its sample. An entrant that fails is
    skipped from then on. Errors: `Unavailable` if it is refllm itself.
    """
    outcomes = {entrant.name: Outcome() for entrant in entrants}
    for round_ in range(rounds + 1):
        first = round_ % len(entrants)  # a turn depends on whose was the last: each is first once
        for entrant in [*entrants[first:], *entrants[:first]]:
            if entrant.name not in outcomes:
                continue
            time.sleep(PAUSE)
            try:
                reply = entrant.turn(counts=round_ > 0)
            except Unavailable as error:
                if entrant.name == REFLLM:
                    raise
                bench.skip(f"{entrant.name}, {entrant.action}", error)
                del outcomes[entrant.name]
                continue
            if round_ > 0:
                outcomes[entrant.name].seconds.append(statistics.median(reply["seconds"]))
            outcomes[entrant.name].answer = reply.get("answer", ())
            outcomes[entrant.name].n_tokens = reply.get("n_tokens")
    return outcomes


def figure_of(
    labels: Mapping[str, str | int],
    outcomes: Mapping[str, Outcome],
    *,
    unit: str,
    amount: float,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """A rate "<amount of things>/s", or a time in s or ms of each of `amount` things."""

    def value(seconds: float) -> float:
        if unit.endswith("/s"):
            return amount / seconds
        return seconds / amount * {"s": 1, "ms": 1000}[unit]

    ours = outcomes.get(REFLLM)
    return Figure(
        labels=labels,
        unit=unit,
        samples={name: [value(s) for s in outcomes[name].seconds] for name in outcomes},
        differences={
            name: ours.difference(outcome)
            for name, outcome in outcomes.items()
            if ours is not None and name != REFLLM
        },
        notes=notes or {},
    )


def require_tokens(outcomes: Mapping[str, Outcome], n_tokens: int) -> None:
    """Raise `ValueError` unless each entrant computed that many tokens in its last turn."""
    for name, outcome in outcomes.items():
        if outcome.n_tokens != n_tokens:
            raise ValueError(f"{name} computed {outcome.n_tokens} tokens instead of {n_tokens}")


def forget(path: Path) -> None:
    """Ask the system to drop a file from its page cache, so that it is read from the disk again.

    Nothing happens on a system without `posix_fadvise`.
    """
    if hasattr(os, "posix_fadvise"):
        with path.open("rb", buffering=0) as stream:
            os.fsync(stream.fileno())  # a page that is not on the disk yet stays in the cache
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> None:
    """Read a file once, so that every program finds it in the system's page cache."""
    with path.open("rb", buffering=0) as stream:
        while stream.read(1 << 24):
            pass
