"""`first-token`: the time from a prompt to its first token, new and asked again, beside llama.cpp.

refllm keeps keys and values of prompts in `refllm.models.prompt_cache`; llama.cpp's context keeps
what the prompt before had in common with this one. Of a prompt that is kept, both compute the last
token only. `reuse` compares refllm with itself on the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare import Bench, Entrant, Outcome, alternate, require_tokens
from benchmarks.llamas import add_figures, chosen_models, loaded_llamas, numerics_of, token_ids
from benchmarks.synthetic import QUANTIZED_TYPES, QUICK_SHAPE

__all__ = ["measure_first_token"]

N_TOKENS = 512
QUICK_TOKENS = 16
SHAPES = ("1.1B",)
REPEAT_KEPT = 5  # times that a turn repeats what takes a fraction of a second


def measure_first_token(
    bench: Bench, *, shapes: Sequence[str] = (), types: Sequence[str] = ()
) -> None:
    """Milliseconds to the first token, on every synthetic model that was chosen.

    Errors: `ValueError` if a program computes another number of tokens, if refllm's logits depend
    on what was kept, or if two numerics give the same logits.
    """
    shapes = shapes or ((QUICK_SHAPE,) if bench.options.is_quick else SHAPES)
    for shape, type_name, path in chosen_models(
        bench, shapes=shapes, types=types or QUANTIZED_TYPES
    ):
        _measure(bench, path, {"shape": shape, "type": type_name})


def _measure(bench: Bench, path: Path, model: dict[str, str]) -> None:
    numerics = numerics_of(model["type"])
    prompt = token_ids(QUICK_TOKENS if bench.options.is_quick else N_TOKENS)
    new = {"token_ids": prompt, "is_kept": False}
    short = {"token_ids": token_ids(16), "is_kept": False}
    kept = {"token_ids": prompt, "is_kept": True, "repeat": REPEAT_KEPT}
    with loaded_llamas(bench, path, numerics, n_ctx=2 * len(prompt)) as contestants:
        outcomes: dict[str, dict[str, Outcome]] = {}
        # The last turn of the first work leaves the prompt in the caches.
        for work, arguments, warm_up, n_computed in (
            ("new prompt", new, short, len(prompt)),
            ("kept prompt", kept, kept, 1),
        ):
            entrants = [
                Entrant(name, each, "first_token", arguments, warm_up)
                for name, each in contestants.items()
            ]
            outcomes[work] = alternate(entrants, rounds=bench.options.rounds, bench=bench)
            require_tokens(outcomes[work], n_computed)
            labels: dict[str, str | int] = {"work": work, "tokens": len(prompt), **model}
            add_figures(bench, labels, outcomes[work], numerics, unit="ms", amount=1)
    for name in numerics:
        answers = [list(each[name].answer) for each in outcomes.values() if name in each]
        if any(answer != answers[0] for answer in answers):
            raise ValueError(f"{name}: the logits after a prompt that was kept have other bits")
