"""`batch`: tokens per second of several texts that are continued together, beside llama.cpp.

Both programs compute one token of every text in each step, and draw the likeliest next ones from
the logits, through their own functions for that: `refllm.generate.step_together`, and a
`llama_batch` with a sequence id for each text. Short prompts are in the caches beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare import Bench, Entrant, alternate, require_tokens
from benchmarks.llamas import (
    PEER,
    add_figures,
    chosen_models,
    loaded_llamas,
    numerics_of,
    token_ids,
)
from benchmarks.peer import Contestant, Unavailable
from benchmarks.synthetic import QUANTIZED_TYPES, QUICK_SHAPE

__all__ = ["SIZES", "measure_batches"]

SIZES = (8, 64)
SHAPES = ("1.1B",)
N_PROMPT = 8
N_STEPS = {8: 16, 64: 8}  # a sample takes seconds in each case
QUICK_SIZES = (2, 3)


def measure_batches(
    bench: Bench,
    *,
    sizes: Sequence[int] = (),
    shapes: Sequence[str] = (),
    types: Sequence[str] = (),
) -> None:
    """Batches of `sizes` texts on every synthetic model that was chosen.

    Errors: `ValueError` if a program computes another number of tokens, or if two numerics give the
    same logits.
    """
    is_quick = bench.options.is_quick
    shapes = shapes or ((QUICK_SHAPE,) if is_quick else SHAPES)
    sizes = sizes or (QUICK_SIZES if is_quick else SIZES)
    for shape, type_name, path in chosen_models(
        bench, shapes=shapes, types=types or QUANTIZED_TYPES
    ):
        _measure(bench, path, sizes, {"shape": shape, "type": type_name})


def _measure(bench: Bench, path: Path, sizes: Sequence[int], model: dict[str, str]) -> None:
    numerics = numerics_of(model["type"])
    with loaded_llamas(bench, path, numerics, n_ctx=512) as contestants:
        for size in sizes:
            n_steps = 2 if bench.options.is_quick else N_STEPS.get(size, 8)
            prompts = [token_ids(N_PROMPT, seed=i) for i in range(size)]
            entrants = [
                Entrant(name, each, "continue_together", {"n_tokens": n_steps}, {"n_tokens": 1})
                for name, each in contestants.items()
                if _is_filled(bench, name, each, prompts)
            ]
            outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
            require_tokens(outcomes, size * n_steps)
            labels: dict[str, str | int] = {"work": "batch", "texts": size, **model}
            add_figures(bench, labels, outcomes, numerics, unit="tokens/s", amount=size * n_steps)


def _is_filled(
    bench: Bench, name: str, contestant: Contestant, prompts: Sequence[Sequence[int]]
) -> bool:
    """Put the prompts into a contestant's caches; a peer that fails is skipped."""
    try:
        contestant.run("fill", prompts=prompts)
    except Unavailable as error:
        if name != PEER:
            raise
        bench.skip(f"{name}, {len(prompts)} texts", error)
        return False
    return True
