"""`reuse`: the time to the first token of a prompt that was asked before, and of a new one.

The engine that keeps recent prompts and one that keeps none are asked the same prompts in turn,
each a text of `N_TOKENS` tokens that begins otherwise than all before it: first a new prompt, then
the same again. The logits of both engines must have the same bits.
"""

from __future__ import annotations

import random
import time

from benchmarks.compare import Bench
from benchmarks.results import REFLLM, Figure
from refllm.api import InferencingParams
from refllm.engine import LocalEngine
from refllm.generate import steps_of
from refllm.models.load import NUMERICS
from refllm.tokenizer.base import Tokenizer

__all__ = ["WITHOUT", "measure_reuse"]

WITHOUT = "without a cache"
MODEL = "tiny-chat"
N_TOKENS = 400
QUICK_TOKENS = 40
PARAMS = InferencingParams(max_tokens=1)
SENTENCES = (
    "Once upon a time, there was a little boy named Ivan.",
    "Ivan loved to play in the barn.",
    "One day he saw a tiny yellow key under a tree.",
    "He picked it up and showed it to his brother.",
    "The mouse smiled and said thank you.",
    "From that day on, they were best friends.",
)


def measure_reuse(bench: Bench) -> None:
    """Milliseconds to the first token, by both numerics."""
    n_tokens = QUICK_TOKENS if bench.options.is_quick else N_TOKENS
    for numerics in NUMERICS:
        engines = {
            REFLLM: LocalEngine(numerics=numerics, threads=bench.options.threads),
            WITHOUT: LocalEngine(
                numerics=numerics, threads=bench.options.threads, prompt_cache_bytes=0
            ),
        }
        works = ("new prompt", "repeated prompt")
        samples: dict[str, dict[str, list[float]]] = {
            work: {name: [] for name in engines} for work in works
        }
        tokenizer = engines[REFLLM].inferencing_model(MODEL).tokenizer
        for round_ in range(bench.options.rounds + 1):
            prompt = _prompt(tokenizer, n_tokens, round_)
            for work in works:
                for name, engine in engines.items():
                    seconds = _seconds_to_first_token(engine, prompt)
                    if round_ > 0:  # the first compiles, and reads the model
                        samples[work][name].append(1000 * seconds)
            _require_equal(engines, prompt)
        for work in works:
            labels: dict[str, str | int] = {"work": work, "tokens": n_tokens}
            labels |= {"model": MODEL, "numerics": numerics}
            bench.add(Figure(labels=labels, unit="ms", samples=samples[work]))


def _prompt(tokenizer: Tokenizer, n_tokens: int, number: int) -> str:
    """A text of exactly so many tokens; of two numbers, it differs from the first ones on."""
    choose = random.Random(number)
    while True:
        text = f"{number} {' '.join(choose.choices(SENTENCES, k=n_tokens // 5))}"
        text = tokenizer.decode(tokenizer.encode(text)[:n_tokens])
        if len(tokenizer.encode(text)) == n_tokens:
            return text


def _seconds_to_first_token(engine: LocalEngine, prompt: str) -> float:
    start = time.perf_counter()
    next(engine.stream(MODEL, prompt, PARAMS))
    return time.perf_counter() - start


def _require_equal(engines: dict[str, LocalEngine], prompt: str) -> None:
    """Raise `ValueError` unless the engines' logits after a known prompt have the same bits."""
    logits: list[bytes] = []
    n_reused: list[int] = []
    for engine in engines.values():
        llama, generation = engine.open(MODEL, prompt, PARAMS)
        with engine.computing():
            list(steps_of(llama.network, generation))
        assert generation.logits is not None
        logits.append(generation.logits.tobytes())
        n_reused.append(generation.n_reused)
    n_prompt = len(llama.prompt_tokens(prompt))
    if n_reused != [n_prompt - 1, 0]:
        raise ValueError(f"of {n_prompt} tokens, {n_reused} were reused")
    if len(set(logits)) != 1:
        raise ValueError("the logits after a prompt that was kept have other bits")
