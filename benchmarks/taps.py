"""`taps`: decoding without a tap, with the calls of one in the network and without them.

refllm's networks call a tap with each value, which by default drops it. The other entrant is the
same network, of whose source the calls of the tap and their arguments are removed. Both have the
same weights and decode the same tokens in one process, in turns of a few tokens; logits that do not
have the same bits stop the benchmark.
"""

from __future__ import annotations

import ast
import copy
import inspect
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import refllm.llama
from benchmarks.compare import Bench
from benchmarks.results import REFLLM, Figure
from refllm.jit.compile import use_threads
from refllm.llama import KVCache, Llama, Segment
from refllm.models.load import LlamaModel, load_path

__all__ = ["WITHOUT", "measure_taps", "without_taps"]

WITHOUT = "without call sites"
PROMPT = "Once upon a time"
N_TOKENS = 192  # of a turn, after the prompt
N_PAIRS = 8  # of turns in a sample
QUICK_TOKENS, QUICK_PAIRS = 2, 1
TAPS = ("tap", "show")  # what a tap is called in `refllm.llama`


class _Remover(ast.NodeTransformer):
    """Removes the statements that only serve a tap."""

    def __init__(self) -> None:
        self.n_removed = 0

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Remove `tap(name, value)`."""
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in TAPS:
            self.n_removed += 1
            return None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Remove `if show is not ignore:` and what is in it."""
        test = node.test
        if isinstance(test, ast.Compare) and getattr(test.left, "id", None) in TAPS:
            self.n_removed += 1
            return None
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """Replace `show = at_layer(tap, i)` by `show = tap`."""
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id in TAPS:
            self.n_removed += 1
            node.value = ast.Name("tap", ast.Load())
        return node


def without_taps(network: Llama) -> Llama:
    """Return a network with the same weights that calls no tap.

    Raises:
        ValueError: If `refllm.llama` has no calls of a tap, or a name of it is left.
    """
    remover = _Remover()
    tree = remover.visit(ast.parse(inspect.getsource(refllm.llama)))
    left = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {node.func.id for node in left if isinstance(node.func, ast.Name)}
    if remover.n_removed == 0 or names & {*TAPS, "at_layer"}:
        raise ValueError("the calls of the tap are not all removed")
    module = ModuleType("refllm_llama_without_taps")
    sys.modules[module.__name__] = module  # dataclasses look it up
    exec(compile(ast.fix_missing_locations(tree), module.__name__, "exec"), module.__dict__)  # noqa: S102 - our own source
    bare = copy.copy(network)
    bare.__class__ = module.Llama
    return bare


def measure_taps(bench: Bench, model: Path) -> None:
    """Microseconds of a decoded token, with call sites and without."""
    use_threads(bench.options.threads)
    loaded = load_path(model)
    if not isinstance(loaded, LlamaModel):
        raise TypeError(f"{model} is not a llama")
    is_quick = bench.options.is_quick
    n_tokens, n_pairs = (QUICK_TOKENS, QUICK_PAIRS) if is_quick else (N_TOKENS, N_PAIRS)
    networks = {REFLLM: loaded.network, WITHOUT: without_taps(loaded.network)}
    prompt = loaded.tokenizer.encode(PROMPT)
    token_ids = _continued(loaded.network, prompt, n_tokens)
    samples: dict[str, list[float]] = {name: [] for name in networks}
    for round_ in range(bench.options.rounds + 1):
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for pair in range(n_pairs):
            order = list(networks)[:: 1 if pair % 2 == 0 else -1]
            logits = {}
            for name in order:
                took, logits[name] = _decoded(networks[name], prompt, token_ids)
                seconds[name].append(took)
            if logits[REFLLM] != logits[WITHOUT]:
                raise ValueError("the logits have other bits without the call sites")
        if round_ > 0:  # the first compiles
            for name, each in seconds.items():
                samples[name].append(1e6 * statistics.median(each) / n_tokens)
    labels: dict[str, str | int] = {"work": "decode", "model": model.stem, "tokens": n_tokens}
    bench.add(Figure(labels=labels, unit="µs", samples=samples))


def _continued(network: Llama, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """Return the likeliest tokens after the prompt."""
    cache, new, drawn = KVCache(network.config), list(prompt), []
    for _ in range(n_tokens):
        new = [int(network.forward([Segment(new, cache)])[0][-1].argmax())]
        drawn += new
    return drawn


def _decoded(
    network: Llama, prompt: Sequence[int], token_ids: Sequence[int]
) -> tuple[float, bytes]:
    """Return the seconds that the tokens took one at a time, and the last logits."""
    cache = KVCache(network.config)
    network.forward([Segment(prompt, cache)])
    start = time.perf_counter()
    for token_id in token_ids:
        [logits] = network.forward([Segment([token_id], cache)])
    return time.perf_counter() - start, logits.tobytes()
