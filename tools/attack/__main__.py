"""The command: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tools.attack.judge import OUTCOMES, Verdict
from tools.attack.page import RESULTS, write_page
from tools.attack.targets import TARGETS
from tools.attack.watch import verdicts

MAX_SHOWN = 20  # faults of one target
DEFAULT_INPUTS = 20_000


@dataclass(slots=True)
class Tally:
    """What became of the inputs of one target."""

    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    largest: int = 0
    faults: list[Verdict] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one input."""
        self.outcomes[verdict.outcome] += 1
        self.longest = max(self.longest, verdict.seconds)
        self.largest = max(self.largest, verdict.n_bytes)
        if verdict.outcome not in OUTCOMES:
            self.faults.append(verdict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, print the table, and return 1 where there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tools.attack", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=DEFAULT_INPUTS, help="of all targets")
    parser.add_argument("--first", type=int, default=0, help="the first input's number")
    parser.add_argument("--only", type=int, help="the one input with this number")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--save", action="store_true", help=f"add the counts to {RESULTS.name}")
    parser.add_argument("--page", action="store_true", help="only write the table of the docs")
    options = parser.parse_args(arguments)
    if options.page:
        write_page()
        return 0
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}; the targets are {', '.join(TARGETS)}")
    names = options.targets or [*TARGETS]
    tallies = {}
    for name, n_inputs in _shares(names, options.inputs).items():
        numbers = range(options.first, options.first + n_inputs)
        if options.only is not None:
            numbers = range(options.only, options.only + 1)
        tally = tallies[name] = _attack(name, options.seed, numbers, options.jobs)
        print(_line(name, tally), flush=True)
        for verdict in tally.faults[:MAX_SHOWN]:
            again = f"python -m tools.attack {name} --seed {options.seed} --only {verdict.number}"
            print(f"  {verdict.outcome}: {again}\n{_indented(verdict.note)}", flush=True)
    if options.save:
        _save(tallies)
    return int(any(tally.faults for tally in tallies.values()))


def _shares(names: Sequence[str], n_inputs: int) -> Mapping[str, int]:
    weights = {name: TARGETS[name].weight for name in names}
    return {
        name: -(-n_inputs * weight // sum(weights.values())) for name, weight in weights.items()
    }


def _attack(name: str, seed: int, numbers: range, n_jobs: int) -> Tally:
    tally = Tally()

    def work(job: int) -> None:
        for verdict in verdicts(name, seed, numbers[job::n_jobs]):
            tally.add(verdict)

    with ThreadPoolExecutor(n_jobs) as jobs:
        for _ in jobs.map(work, range(n_jobs)):
            pass
    return tally


def _line(name: str, tally: Tally) -> str:
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(tally.outcomes.items()))
    largest = tally.largest / 1e6
    return f"{name}: {counts}; longest {tally.longest:.2f} s, largest {largest:.0f} MB"


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _save(tallies: Mapping[str, Tally]) -> None:
    """Add what was counted to the recorded counts: a million inputs are many runs."""
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, tally in tallies.items():
        row = recorded.setdefault(name, {"outcomes": {}, "longest_s": 0.0, "largest_mb": 0})
        for outcome, n in tally.outcomes.items():
            row["outcomes"][outcome] = row["outcomes"].get(outcome, 0) + n
        row["longest_s"] = max(row["longest_s"], round(tally.longest, 2))
        row["largest_mb"] = max(row["largest_mb"], round(tally.largest / 1e6))
    RESULTS.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
