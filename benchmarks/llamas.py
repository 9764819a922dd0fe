"""`decode` and `prefill`: tokens per second, beside llama.cpp on the same files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import Bench, Entrant, Outcome, alternate, figure_of, read_through
from benchmarks.peer import Contestant, Unavailable
from benchmarks.results import REFLLM
from benchmarks.synthetic import QUICK_SHAPE, TYPES, model_file

__all__ = [
    "FULL_SHAPES",
    "PEER",
    "Work",
    "add_figures",
    "chosen_models",
    "compare_llamas",
    "decode",
    "loaded_llamas",
    "measure_llamas",
    "numerics_of",
    "prefill",
    "require_different",
    "token_ids",
]

FULL_SHAPES = ("1.1B", "7B-8-layers")
PEER = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for in each turn, and how many tokens that is; and before the first turn."""

    name: str
    arguments: Mapping[str, Any]
    warm_up: Mapping[str, Any]
    n_tokens: int
    n_ctx: int


def decode(n_prompt: int, n_tokens: int) -> Work:
    """Tokens one at a time after a prompt, the same tokens for every program."""
    arguments = {"prompt": token_ids(n_prompt), "token_ids": token_ids(n_tokens, seed=1)}
    warm_up = {"prompt": token_ids(8), "token_ids": token_ids(2, seed=1)}
    return Work("decode", arguments, warm_up, n_tokens, n_ctx=1024)


def prefill(n_tokens: int) -> Work:
    """A prompt in an empty context, with logits for its last token."""
    warm_up = {"token_ids": token_ids(16)}
    return Work("prefill", {"token_ids": token_ids(n_tokens)}, warm_up, n_tokens, n_ctx=1024)


def token_ids(n_tokens: int, *, seed: int = 0) -> list[int]:
    """Random tokens that every vocabulary here has, none of them special: 259 … 511."""
    ids: list[int] = np.random.default_rng(seed).integers(259, 512, n_tokens).tolist()
    return ids


def numerics_of(type_name: str) -> tuple[str, ...]:
    """The numerics that make sense for a model of this type."""
    return ("exact",) if type_name == "F16" else ("exact", "int8")


def chosen_models(
    bench: Bench, *, shapes: Sequence[str] = (), types: Sequence[str] = ()
) -> Iterator[tuple[str, str, Path]]:
    """Shape, type and file of the synthetic models; `shapes` and `types` choose some of them."""
    options = bench.options
    for shape in shapes or ((QUICK_SHAPE,) if options.is_quick else FULL_SHAPES):
        for type_name in types or TYPES:
            try:
                path = model_file(options.work, shape, type_name, peer_python=options.peer_python)
            except Unavailable as error:
                bench.skip(f"{shape} {type_name}", error)
            else:
                yield shape, type_name, path


def measure_llamas(
    bench: Bench, work: Work, *, shapes: Sequence[str] = (), types: Sequence[str] = ()
) -> None:
    """The work on every synthetic model that was chosen."""
    for shape, type_name, path in chosen_models(bench, shapes=shapes, types=types):
        labels = {"work": work.name, "shape": shape, "type": type_name}
        compare_llamas(bench, path, work, labels, numerics=numerics_of(type_name))


def compare_llamas(
    bench: Bench,
    path: Path,
    work: Work,
    labels: Mapping[str, str],
    *,
    numerics: Sequence[str] = ("exact",),
) -> None:
    """The work on one model: a figure for each of refllm's numerics.

    Errors: `ValueError` if two numerics give the same answer.
    """
    with loaded_llamas(bench, path, numerics, n_ctx=work.n_ctx) as contestants:
        entrants = [
            Entrant(name, contestant, work.name, work.arguments, work.warm_up)
            for name, contestant in contestants.items()
        ]
        outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
    add_figures(bench, labels, outcomes, numerics, unit="tokens/s", amount=work.n_tokens)


@contextmanager
def loaded_llamas(
    bench: Bench, path: Path, numerics: Sequence[str], *, n_ctx: int
) -> Iterator[dict[str, Contestant]]:
    """Yield a process for each of refllm's numerics and the peer's, all with the model loaded.

    A process that is not there or fails is skipped.
    """
    read_through(path)
    where = {"path": str(path.absolute()), "threads": bench.options.threads, "n_ctx": n_ctx}
    contestants = {}
    with ExitStack() as stack:
        for name, is_peer in [(each, False) for each in numerics] + [(PEER, True)]:
            program = "llama_cpp_llama" if is_peer else "refllm_llama"
            extra = {} if is_peer else {"numerics": name}
            try:
                contestant = stack.enter_context(bench.contestant(program, is_peer=is_peer))
                reply = contestant.run("load", **where, **extra)
            except Unavailable as error:
                bench.skip(name, error)
                continue
            bench.versions[PEER if is_peer else REFLLM] = reply["versions"]
            contestants[name] = contestant
        yield contestants


def add_figures(
    bench: Bench,
    labels: Mapping[str, str | int],
    outcomes: Mapping[str, Outcome],
    numerics: Sequence[str],
    *,
    unit: str,
    amount: float,
) -> None:
    """Add a figure for each of refllm's numerics, beside the peer.

    Errors: `ValueError` if two numerics give the same answer.
    """
    require_different(outcomes, numerics)
    for name in numerics:
        if name in outcomes:
            pair = {REFLLM: outcomes[name], **_only(PEER, outcomes)}
            bench.add(figure_of({**labels, "numerics": name}, pair, unit=unit, amount=amount))


def require_different(outcomes: Mapping[str, Outcome], numerics: Sequence[str]) -> None:
    """Refuse numerics that give one answer: one of them was not what its label says."""
    for one, other in itertools.combinations([name for name in numerics if name in outcomes], 2):
        if outcomes[one].difference(outcomes[other]) == 0:
            raise ValueError(f"{one} and {other} gave the same logits: one of them is not itself")


def _only(name: str, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    return {name: outcomes[name]} if name in outcomes else {}
