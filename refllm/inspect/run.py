"""A run that is kept for a page: the texts' tokens, the draws, and every named value.

A value is known by its call and its name, as in a trace: "0/Qcur-0" is the first of that name in
call 0, "0/Qcur-0#2" the second one, after RoPE. A llama has one call, over the prompt and what was
drawn; an encoder has one for each text.

T tokens of a call, H heads, E head width, S context, D model width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput
from refllm.inspect.drawing import Draw, draws_of
from refllm.interface import InferencingParams
from refllm.kernels.attention import attention_scale
from refllm.models.load import BertModel, LlamaModel
from refllm.tap import Tap

__all__ = ["EXAMPLES", "Run", "Value", "run_of"]

Floats = NDArray[np.float32]

KEPT_BYTES = 256 * 2**20  # of values; those of a larger run are computed again when asked for
# The lens and the lengths of the residual stream are made from these, at every layer.
ALWAYS_KEPT = ("inp_embd", "inp_norm", "attn_out", "ffn_out", "l_out")

EXAMPLES = {
    "LlamaModel": ("Once upon a time",),
    "BertModel": ("A cat sleeps on the sofa.", "The kitten naps.", "Stocks fell on Monday."),
}
"""What is inspected where no text is given, by the kind of model."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One named value of a run; `array` is None where it is not kept."""

    shape: tuple[int, ...]
    array: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        name: The model's name or path, for titles.
        engine: Computes values that are not kept.
        model: The model.
        texts: What was given: one prompt, or the texts to embed.
        token_ids: Of each call.
        n_prompt: The number of tokens of the prompt in each call; the others were drawn.
        params: The interface's parameters, of a llama.
        draws: Of a llama, one for each token that was drawn.
        vectors: Of an encoder, float32 [texts, K].
        values: By call and name, in the order of computation.
    """

    name: str
    engine: LocalEngine
    model: LlamaModel | BertModel
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    n_prompt: tuple[int, ...]
    params: InferencingParams | None
    draws: tuple[Draw, ...]
    vectors: Floats | None
    values: dict[str, Value]

    def array(self, name: str) -> Floats:
        """Return a value in full, float32.

        Raises:
            InvalidInput: If the run has no value of that name.
        """
        value = self.values.get(name)
        if value is None:
            raise InvalidInput(f"the run has no value {name!r:.80}")
        if value.array is not None:
            return value.array
        call, _, wanted = name.partition("/")
        found: list[Floats] = []

        def take(value_name: str, array: Floats, /) -> None:
            if value_name == wanted:
                found.append(array.copy())

        with self.engine.computing():
            _watch(self.model, self.token_ids[int(call)], take)
        return found[0]


def run_of(
    engine: LocalEngine,
    model: str | Path,
    texts: Sequence[str | Sequence[int]],
    params: InferencingParams,
    *,
    name: str,
) -> Run:
    """Run a model, and return the run with its values.

    Args:
        engine: The engine, with seed, profile and numerics.
        model: A name or path, as `LocalEngine.load`.
        texts: One prompt for a model that generates text, or its token ids; one or more texts for
            an encoder; those of `EXAMPLES` for none.
        params: Of a model that generates text.
        name: The model's name for titles.

    Raises:
        InvalidInput: For several prompts, token ids for an encoder, and as `LocalEngine.open`.
        ModelNotSupported: As `LocalEngine.load`.
        LlmRuntimeError: If a value is not finite.
    """
    found = engine.load(model)
    texts = texts or EXAMPLES[type(found).__name__]
    draws: tuple[Draw, ...] = ()
    vectors = None
    if isinstance(found, LlamaModel):
        if len(texts) > 1:
            raise InvalidInput(
                f"{name} generates text and takes one prompt, got {len(texts)}; quote a text with "
                "spaces"
            )
        llama, generation = engine.open(found, texts[0], params)
        n_prompt = [len(generation.tokens)]
        draws = tuple(draws_of(engine, llama, generation, params))
        token_ids = [tuple(generation.tokens)]
        # The token that is drawn when the context is full cannot be computed.
        is_full = len(token_ids[0]) > llama.config.n_ctx
        calls = [token_ids[0][:-1] if is_full else token_ids[0]]
    else:
        if not all(isinstance(text, str) for text in texts):
            raise InvalidInput(f"{name} reads text, not token ids")
        tokenized = found.tokenize([str(text) for text in texts])
        token_ids = calls = [tuple(ids) for ids in tokenized.token_ids]
        n_prompt = [len(ids) for ids in token_ids]
        with engine.computing():
            vectors = found.embed_tokens(token_ids, n_prompt=tokenized.n_prompt)  # [N, K]
    values: dict[str, Value] = {}
    n_kept = 0
    for call, ids in enumerate(calls):

        def take(value_name: str, array: Floats, /, call: int = call) -> None:
            nonlocal n_kept
            is_kept = value_name.partition("-")[0] in ALWAYS_KEPT
            if not is_kept:
                n_kept += array.nbytes
                is_kept = n_kept <= KEPT_BYTES
            copy = array.copy() if is_kept else None
            values[f"{call}/{value_name}"] = Value(array.shape, copy)

        with engine.computing():
            _watch(found, ids, take)
    return Run(
        name=name,
        engine=engine,
        model=found,
        texts=tuple(
            text if isinstance(text, str) else found.tokenizer.decode(list(text)) for text in texts
        ),
        token_ids=tuple(calls),
        n_prompt=tuple(n_prompt),
        params=params if isinstance(found, LlamaModel) else None,
        draws=draws,
        vectors=vectors,
        values=values,
    )


def _watch(model: LlamaModel | BertModel, token_ids: Sequence[int], take: Tap) -> None:
    """Compute a call, and give each value to `take` with its name and the number of the name.

    The scores of a head are given before its attention weights, where they belong.
    """
    seen: Counter[str] = Counter()
    latest: dict[str, Floats] = {}
    is_llama = isinstance(model, LlamaModel)

    def tap(name: str, array: Floats, /) -> None:
        seen[name] += 1
        base, _, layer = name.partition("-")
        if base in ("Qcur", "Kcur"):
            latest[base] = array.copy()
        elif base == "kq_soft_max":
            scores = _scores(latest["Qcur"], latest["Kcur"], is_causal=is_llama)
            take(f"kq-{layer}", scores)
        take(name if seen[name] == 1 else f"{name}#{seen[name]}", array)

    if isinstance(model, LlamaModel):
        model.forward(token_ids, tap=tap)
    else:
        model.network.hidden([token_ids], tap=tap)


def _scores(queries: Floats, keys: Floats, *, is_causal: bool) -> Floats:
    """Return q·k/√E of each head, float32 [H, T, S]; NaN where a query cannot see a key.

    They are computed here in float64, for a reader: the kernels never store them.
    """
    n_heads, n_kv_heads, width = queries.shape[1], keys.shape[1], queries.shape[2]
    repeated = np.repeat(keys, n_heads // n_kv_heads, axis=1).astype(np.float64)  # [S, H, E]
    scores = np.einsum("the,she->hts", queries.astype(np.float64), repeated)  # [H, T, S]
    scores *= float(attention_scale(width))
    if is_causal:
        scores[:, np.triu(np.ones(scores.shape[1:], np.bool_), 1)] = np.nan
    return np.asarray(scores, np.float32)
