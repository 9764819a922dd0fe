"""`growth`: how refllm's costs grow with the prompt, the batch and the model.

Each cost is fitted by cost ∝ x^exponent, least squares on logarithms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.compare import Bench, Entrant, alternate, figure_of
from benchmarks.embed import model_tokenizer
from benchmarks.llamas import token_ids
from benchmarks.peer import Contestant
from benchmarks.results import REFLLM, Figure, Fit
from benchmarks.synthetic import QUICK_SHAPE, SHAPES, SIZES, model_file
from benchmarks.texts import uniform_texts

__all__ = ["exponent", "fits_of", "measure_embedding_growth", "measure_llama_growth"]

N_STEPS = 8  # tokens decoded for one sample
BATCH_PROMPT = 64  # tokens that each sequence of a batch holds at most


@dataclass(frozen=True, slots=True)
class Extent:
    """The x of every plot."""

    prompts: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    sizes: tuple[str, ...] = SIZES
    size_prompt: int = 128  # the prompt with which sizes are compared
    texts: tuple[int, ...] = (8, 16, 32, 64, 128)


FULL = Extent()
QUICK = Extent((16, 32), (1, 2), (QUICK_SHAPE, "12M"), 16, (8, 16))


@dataclass(frozen=True, slots=True)
class Request:
    """What costs something; its answer covers `n_steps` times the cost."""

    contestant: Contestant
    action: str
    arguments: Mapping[str, Any]
    n_steps: int = 1


Requests: TypeAlias = Mapping[int, Request]  # by x


def exponent(x: Sequence[float], cost: Sequence[float]) -> float:
    """The slope of the least-squares line through (log x, log cost)."""
    slope, _ = np.polyfit(np.log(x), np.log(cost), 1)
    return float(slope)


def fits_of(figures: Sequence[Figure]) -> list[Fit]:
    """A fit for each cost and each thing it was measured against; other figures have none."""

    def key(figure: Figure) -> tuple[str, str]:
        return str(figure.labels["cost"]), str(figure.labels["against"])

    fits = []
    growing = sorted((figure for figure in figures if "against" in figure.labels), key=key)
    for (cost, against), group in itertools.groupby(growing, key=key):
        points = [(float(figure.labels["x"]), figure.median(REFLLM)) for figure in group]
        x, costs = zip(*points, strict=True)
        fits.append(Fit(cost=cost, against=against, exponent=exponent(x, costs)))
    return fits


def measure_llama_growth(bench: Bench, *, shape: str, type_name: str, numerics: str) -> None:
    """Reading a prompt and decoding tokens, against prompt length, batch and model size.

    Errors: `Unavailable` where a model cannot be made or loaded.
    """
    is_quick = bench.options.is_quick
    extent = QUICK if is_quick else FULL
    with _llama(bench, QUICK_SHAPE if is_quick else shape, type_name, numerics) as llama:
        _measure(bench, "prefill", "prompt length", _prefills(llama, extent.prompts))
        _measure(bench, "decode a token", "prompt length", _decodes(llama, extent.prompts))
        _measure(bench, "decode a token each", "batch", _batches(llama, extent.batches))
    length = extent.size_prompt
    with ExitStack() as stack:
        prefills, decodes = {}, {}
        for size in extent.sizes:
            llama = stack.enter_context(_llama(bench, size, type_name, numerics))
            n_parameters = SHAPES[size].n_parameters
            prefills[n_parameters] = _prefills(llama, [length])[length]
            decodes[n_parameters] = _decodes(llama, [length])[length]
        _measure(bench, "prefill", "parameters", prefills)
        _measure(bench, "decode a token", "parameters", decodes)


def measure_embedding_growth(bench: Bench, folder: Path) -> None:
    """Embedding texts, against how many there are and how long they are."""
    extent = QUICK if bench.options.is_quick else FULL
    tokenizer = model_tokenizer(folder)
    longest, most = extent.texts[-1], extent.batches[-1]
    of_one_length = uniform_texts(tokenizer, most, longest)
    of_many_lengths = {n: uniform_texts(tokenizer, most, n) for n in extent.texts}
    with bench.contestant("refllm_bert", is_peer=False) as embedder:
        where = {"folder": str(folder.absolute()), "work": str(bench.options.work.absolute())}
        embedder.run("load", **where, threads=bench.options.threads)
        batches = {n: _embed(embedder, of_one_length[:n]) for n in extent.batches}
        lengths = {n: _embed(embedder, texts) for n, texts in of_many_lengths.items()}
        _measure(bench, "embed", "batch", batches)
        _measure(bench, "embed", "text length", lengths)


@contextmanager
def _llama(bench: Bench, shape: str, type_name: str, numerics: str) -> Iterator[Contestant]:
    """A synthetic model, loaded."""
    options = bench.options
    path = model_file(options.work, shape, type_name, peer_python=options.peer_python)
    where = {"path": str(path.absolute()), "threads": options.threads, "n_ctx": FULL.prompts[-1]}
    with bench.contestant("refllm_llama", is_peer=False) as llama:
        bench.versions[REFLLM] = llama.run("load", **where, numerics=numerics)["versions"]
        yield llama


def _prefills(llama: Contestant, lengths: Sequence[int]) -> Requests:
    return {n: Request(llama, "prefill", {"token_ids": token_ids(n)}) for n in lengths}


def _decodes(llama: Contestant, lengths: Sequence[int]) -> Requests:
    """Steps of one sequence each, after which the context holds as many tokens as said."""
    llama.run("fill", prompts=[token_ids(n - N_STEPS - 1) for n in lengths])
    steps = token_ids(N_STEPS, seed=1)
    return {
        n: Request(llama, "decode_batch", {"sequences": [i], "token_ids": steps}, N_STEPS)
        for i, n in enumerate(lengths)
    }


def _batches(llama: Contestant, sizes: Sequence[int]) -> Requests:
    """Steps of several sequences together."""
    length = BATCH_PROMPT - N_STEPS - 1
    llama.run("fill", prompts=[token_ids(length, seed=i) for i in range(max(sizes))])
    steps = token_ids(N_STEPS, seed=1)
    return {
        n: Request(
            llama, "decode_batch", {"sequences": list(range(n)), "token_ids": steps}, N_STEPS
        )
        for n in sizes
    }


def _embed(embedder: Contestant, texts: Sequence[str]) -> Request:
    arguments = {"texts": texts, "batch_size": len(texts), "repeat": 1}
    return Request(embedder, "embed", arguments)


def _measure(bench: Bench, cost: str, against: str, requests: Requests) -> None:
    """A figure for each x; all take turns, so that a slow minute slows all of them."""
    entrants = [
        Entrant(str(x), request.contestant, request.action, request.arguments)
        for x, request in requests.items()
    ]
    outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
    for x, request in requests.items():
        if str(x) in outcomes:
            labels: dict[str, str | int] = {"cost": cost, "against": against, "x": x}
            ours = {REFLLM: outcomes[str(x)]}
            bench.add(figure_of(labels, ours, unit="ms", amount=request.n_steps))
