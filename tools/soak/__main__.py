"""The command: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from refllm.models.bundled import ROOT
from tools.soak import __doc__ as about
from tools.soak.clients import SHARES, Client, Notes
from tools.soak.questions import Question, make_models, questions
from tools.soak.server import Sample, Server

SAMPLE_SECONDS = 10.0
MIN_SAMPLES = 6  # of each third
N_KILLS = 3
IDLE_SECONDS = 12.0  # a thread of the pool for short work ends after 10 of them
MAX_GROWTH = 0.05
MAX_SECONDS_TO_ANSWER = 60.0  # of a new process that warms up on a busy machine
MAX_SHOWN = 20
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load, print the table, and return 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=about)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args(arguments)
    seconds = 60 * options.minutes
    notes = Notes()
    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder, "home"), Path(folder, "log.txt")
        make_models(home / "ai-models")
        asked = questions([home / "ai-models", ROOT])
        server = Server(home, log, [*_warming(asked)])
        with server.running():
            samples = _load(server, asked, notes, seconds, options.clients)
            last = server.settle(IDLE_SECONDS)
        complaints = [*_complaints(server, notes, samples, last, seconds), *_logged(log)]
    _print(notes, samples, server, last, complaints)
    if options.json is not None:
        figures = {
            "minutes": options.minutes,
            "clients": options.clients,
            "outcomes": {" ".join(key): n for key, n in sorted(notes.counts.items())},
            "samples": [asdict(sample) for sample in samples],
            "first": asdict(server.baseline),
            "last": asdict(last),
            "seconds_to_answer": server.seconds_to_answer,
            "complaints": complaints,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(bool(complaints))


def _warming(asked: Sequence[Question]) -> Iterator[Question]:
    """The first request of each model on each route."""
    seen = set()
    for question in asked:
        key = (question.path, question.body["model"], question.is_streamed)
        if key not in seen:
            seen.add(key)
            yield question


def _load(
    server: Server, asked: Sequence[Question], notes: Notes, seconds: float, n_clients: int
) -> list[Sample]:
    """Let the clients ask for so long; what the process had meanwhile."""
    total = sum(SHARES.values())
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    kinds = [kinds[number * total // n_clients] for number in range(n_clients)]
    clients = [Client(kind, i, server, asked, notes) for i, kind in enumerate(kinds)]
    stop = threading.Event()
    threads = [threading.Thread(target=client.run, args=[stop]) for client in clients]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    kills = [begin + seconds / 3 * (number + 0.5) / N_KILLS for number in range(N_KILLS)]
    interval = min(SAMPLE_SECONDS, seconds / 3 / MIN_SAMPLES)
    next_sample = begin
    samples = []
    try:
        while (now := time.monotonic()) < begin + seconds:
            if kills and now > kills[0]:
                kills.pop(0)
                server.restart()
            if now >= next_sample:
                samples.append(server.sample())
                next_sample += interval
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return samples


def _complaints(
    server: Server, notes: Notes, samples: Sequence[Sample], last: Sample, seconds: float
) -> Iterator[str]:
    yield from notes.wrong
    middle, end = (_third(samples, seconds, number) for number in (1, 2))
    growth = mean(s.n_bytes for s in end) / mean(s.n_bytes for s in middle) - 1
    if abs(growth) > MAX_GROWTH:
        yield f"memory of the last third is {growth:+.1%} of the middle third's"
    if {sample.process for sample in (*middle, *end)} != {last.process}:
        yield "the server's process ended by itself"
    if last.n_threads > server.baseline.n_threads:
        yield f"{last.n_threads} threads, and {server.baseline.n_threads} at the beginning"
    # A loaded model keeps its file mapped; how many are loaded is what --max-models-mib decides.
    first_open, last_open = (
        [target for target in sample.descriptors if not target.endswith(".gguf")]
        for sample in (server.baseline, last)
    )
    if len(last_open) > len(first_open):
        yield f"{len(last_open)} descriptors, and {len(first_open)} at the beginning: {last_open}"
    slowest = max(server.seconds_to_answer, default=0.0)
    if slowest > MAX_SECONDS_TO_ANSWER:
        yield f"a new process answered after {slowest:.0f} s"
    for kind in SHARES:
        if not any(of == kind and outcome != "WRONG" for of, outcome in notes.counts):
            yield f"no request of a {kind} client ended"


def _third(samples: Sequence[Sample], seconds: float, number: int) -> list[Sample]:
    return [s for s in samples if number * seconds / 3 <= s.at < (number + 1) * seconds / 3]


def _logged(log: Path) -> Iterator[str]:
    """What the server wrote down as an error of its own."""
    text = log.read_text("utf-8", "replace")
    if "Traceback" in text:
        yield f"the server logged a traceback: {text[text.index('Traceback') :][:2000]}"


def _print(
    notes: Notes,
    samples: Sequence[Sample],
    server: Server,
    last: Sample,
    complaints: Sequence[str],
) -> None:
    for kind in SHARES:
        outcomes = sorted((o, n) for (of, o), n in notes.counts.items() if of == kind)
        print(f"{kind:10} {', '.join(f'{n} {outcome}' for outcome, n in outcomes)}")
    answered = ", ".join(f"{seconds:.1f} s" for seconds in server.seconds_to_answer)
    print(f"killed {server.n_ends} times; all models answered again after {answered or '-'}")
    print(f"{'seconds':>8} {'process':>8} {'MiB':>8} {'threads':>8} {'descriptors':>11}")
    step = max(len(samples) // MAX_SHOWN, 1)
    for sample in (*samples[::step], server.baseline, last):
        print(
            f"{sample.at:8.0f} {sample.process:8} {sample.n_bytes / MIB:8.1f} "
            f"{sample.n_threads:8} {len(sample.descriptors):11}"
        )
    for complaint in complaints[:MAX_SHOWN]:
        print(f"WRONG: {complaint}")
    print(f"{len(complaints)} complaints")


if __name__ == "__main__":
    sys.exit(main())
