"""Mistakes of embeddings: each computes the case's vectors itself, in float64.

N texts, S tokens of the longest, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.bert import BertConfig
from refllm.checkpoints.config import bert_config
from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.activations import gelu_sigmoid, gelu_tanh, relu, silu
from refllm.conform.faults.float64_weights import Weights, open_float64
from refllm.conform.faults.mistaken_bert import Encoder, embeddings
from refllm.conform.faults.symptom import Symptom, explained_share, seen
from refllm.conform.models import suite_model
from refllm.models.load import load_tokenizer
from refllm.tokenizer.base import Tokenizer

__all__ = ["EMBEDDINGS", "ENCODERS", "vectors"]

Mask = NDArray[np.bool_]
Texts = tuple[str, ...]

KEPT = 32
EPSILONS = (1e-5, 1e-6, 1e-12)


def _first_token(x: Doubles, _is_real: Mask) -> Doubles:
    return np.asarray(x[:, 0])


def _last_token(x: Doubles, is_real: Mask) -> Doubles:
    return np.asarray(x[np.arange(len(x)), is_real.sum(axis=1) - 1])


def _largest(x: Doubles, is_real: Mask) -> Doubles:
    return np.asarray(np.where(is_real[..., None], x, -np.inf).max(axis=1))


def _mean_with_padding(x: Doubles, _is_real: Mask) -> Doubles:
    return np.asarray(x.mean(axis=1))


def _mean_between_specials(x: Doubles, is_real: Mask) -> Doubles:
    """Without [CLS] and [SEP]; of a text that has nothing else, with them."""
    inside = is_real.copy()
    inside[:, 0] = False
    inside[np.arange(len(x)), is_real.sum(axis=1) - 1] = False
    inside = np.where(inside.any(axis=1, keepdims=True), inside, is_real)
    result: Doubles = (x * inside[..., None]).sum(axis=1) / inside.sum(axis=1, keepdims=True)
    return result


def _without_first(ids: Sequence[int]) -> Sequence[int]:
    return ids[1:]


def _without_last(ids: Sequence[int]) -> Sequence[int]:
    return ids[:-1]


def _without_specials(ids: Sequence[int]) -> Sequence[int]:
    return ids[1:-1] or ids


def _of_another_epsilon(eps: float) -> tuple[str, str, Encoder]:
    return (
        f"LayerNorm epsilon {eps:g}",
        f"LayerNorm adds the epsilon {eps:g}: take it from the model's file "
        "(bert.attention.layer_norm_epsilon, layer_norm_eps).",
        Encoder(eps=eps),
    )


ENCODERS: tuple[tuple[str, str, Encoder], ...] = (
    (
        "tanh GELU",
        "GELU is computed by its approximation with tanh: compute x/2·(1 + erf(x/√2)), as the "
        "model's configuration says.",
        Encoder(activation=gelu_tanh),
    ),
    (
        "sigmoid GELU",
        "GELU is computed by its approximation with a sigmoid: compute x/2·(1 + erf(x/√2)).",
        Encoder(activation=gelu_sigmoid),
    ),
    (
        "ReLU for GELU",
        "The feed-forward network uses ReLU: a BERT uses GELU.",
        Encoder(activation=relu),
    ),
    (
        "SiLU for GELU",
        "The feed-forward network uses SiLU: a BERT uses GELU.",
        Encoder(activation=silu),
    ),
    *map(_of_another_epsilon, EPSILONS),
    (
        "padded mean pooling",
        "Padding is computed like text: no attention mask, and the mean is over the padded "
        "length, so a text's vector depends on the texts beside it. Mask the padding in attention "
        "and leave it out of the mean.",
        Encoder(masks=False, pool=_mean_with_padding),
    ),
    (
        "padding in the mean",
        "The mean is over the padded length, so a text's vector depends on the texts beside it: "
        "take the mean of the real tokens.",
        Encoder(pool=_mean_with_padding),
    ),
    (
        "no attention mask",
        "Texts attend to their padding, so a text's vector depends on the texts beside it: mask "
        "the padding in attention.",
        Encoder(masks=False),
    ),
    (
        "embeddings not normalized",
        "The vectors are not scaled to length 1: divide each by its length.",
        Encoder(normalizes=False),
    ),
    (
        "CLS pooling",
        "A text's vector is that of its first token: take the mean of all tokens.",
        Encoder(pool=_first_token),
    ),
    (
        "last token pooling",
        "A text's vector is that of its last token: take the mean of all tokens.",
        Encoder(pool=_last_token),
    ),
    (
        "max pooling",
        "A text's vector is the largest of each component: take the mean of all tokens.",
        Encoder(pool=_largest),
    ),
    (
        "mean without special tokens",
        "[CLS] and [SEP] are left out of the mean: they belong to it.",
        Encoder(pool=_mean_between_specials),
    ),
    (
        "special tokens missing",
        "A text is embedded without [CLS] and [SEP]: the tokenizer adds both.",
        Encoder(tokens=_without_specials),
    ),
    (
        "CLS missing",
        "A text is embedded without [CLS]: the tokenizer adds it in front.",
        Encoder(tokens=_without_first),
    ),
    (
        "SEP missing",
        "A text is embedded without [SEP]: the tokenizer adds it at the end.",
        Encoder(tokens=_without_last),
    ),
    (
        "encoder attends causally",
        "Tokens do not attend to those after them: an encoder has no causal mask.",
        Encoder(is_causal=True),
    ),
    (
        "scores not scaled",
        "Attention scores are not scaled: divide them by the root of the head's width.",
        Encoder(scale=lambda _head_dim: 1.0),
    ),
    (
        "positions from one",
        "Position embeddings begin with number 1: the first token has position 0.",
        Encoder(first_position=1),
    ),
    (
        "positions from two",
        "Position embeddings begin with number 2, as RoBERTa's do: the first token has position 0.",
        Encoder(first_position=2),
    ),
    (
        "positions missing",
        "Position embeddings are not added.",
        Encoder(has_positions=False),
    ),
    (
        "token types missing",
        "Token type embeddings are not added: those of type 0 belong to every token.",
        Encoder(token_type=None),
    ),
    (
        "second token type",
        "Token type 1 is added: the tokens of a single text have type 0.",
        Encoder(token_type=1),
    ),
    (
        "encoder residual missing",
        "What a block of the encoder gives replaces its input: add it to the input.",
        Encoder(adds_attention=False, adds_feed_forward=False),
    ),
)
BY_NAME = {name: encoder for name, _, encoder in ENCODERS}


@cache
def _model() -> tuple[Weights[BertConfig], Tokenizer]:
    """The suite's own BERT."""
    path = suite_model("tiny-embed", Path())  # it ships: nothing is made
    assert path is not None
    return open_float64(path, bert_config), load_tokenizer(path)


def _token_ids(texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
    _, tokenizer = _model()
    return [tokenizer.encode(text, max_tokens=max_tokens) for text in texts]


@lru_cache(KEPT)
def vectors(name: str | None, texts: Texts, max_tokens: int | None) -> Doubles:
    """The vectors [N, D] of tiny-embed with the mistake of that name, or with none."""
    encoder = Encoder() if name is None else BY_NAME[name]
    with np.errstate(all="ignore"):
        return embeddings(_model()[0], _token_ids(texts, max_tokens), encoder)


def _got(got: Json) -> Doubles:
    return np.array([[float(value) for value in vector] for vector in got["embeddings"]])


def _share_of_vectors(name: str, case: Case, got: Json) -> float:
    if case.input["model"] != "tiny-embed" or not case.input["texts"]:
        return 0.0
    texts, limit = tuple(case.input["texts"]), case.input.get("max_tokens")
    difference = _got(got) - np.array(case.expected["embeddings"], float)  # [N, D]
    return explained_share(difference, vectors(name, texts, limit) - vectors(None, texts, limit))


def _vectors_are_right(case: Case, got: Json) -> bool:
    wanted = np.array(case.expected["embeddings"], float)
    found = _got(got)
    bound = float(case.tolerance["absolute"])
    return found.shape == wanted.shape and bool((np.abs(found - wanted) <= bound).all())


def _are_right_but_for_their_length(case: Case, got: Json) -> bool:
    found = _got(got)
    if found.ndim != 2 or _vectors_are_right(case, got):
        return False
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return bool((lengths > 0).all()) and _vectors_are_right(case, {"embeddings": found / lengths})


def _off_by(got: Json, case: Case) -> int:
    wanted: int = case.expected["usage"]["prompt_token_count"]
    return int(got["usage"]["prompt_token_count"]) - wanted


def _counts_padding(case: Case, got: Json) -> bool:
    """Whether the count is the padded length of one text, or of all."""
    if case.input["model"] != "tiny-embed" or not case.input["texts"]:
        return False
    ids = _token_ids(case.input["texts"], case.input.get("max_tokens"))
    longest = max(map(len, ids))
    count = got["usage"]["prompt_token_count"]
    return _vectors_are_right(case, got) and count in (longest, longest * len(ids))


def _counts_without_specials(case: Case, got: Json) -> bool:
    n_specials = 2 * len(case.input["texts"])
    return _vectors_are_right(case, got) and _off_by(got, case) == -n_specials != 0


def _refuses_nothing(case: Case, got: Json) -> bool:
    return "error" in got and not case.input["texts"]


def _refuses_empty(case: Case, got: Json) -> bool:
    return "error" in got and "" in case.input["texts"]


def _is_cut_elsewhere(case: Case, got: Json) -> bool:
    """Whether the one text's vector is that of fewer or more of its tokens."""
    if case.input["model"] != "tiny-embed" or len(case.input["texts"]) != 1:
        return False
    n_ctx = _model()[0].config.n_ctx
    [whole] = _token_ids(case.input["texts"], n_ctx)
    count = int(got["usage"]["prompt_token_count"])
    if count == case.expected["usage"]["prompt_token_count"] or not 2 < count <= len(whole):
        return False
    cut = vectors(None, tuple(case.input["texts"]), count)
    found = _got(got)
    return found.shape == cut.shape and bool(np.allclose(found, cut, atol=1e-5))


Sees = Callable[[Case, Json], bool]
NOT_NORMALIZED = next(cause for name, cause, _ in ENCODERS if name == "embeddings not normalized")
SEEN: tuple[tuple[str, str, Sees], ...] = (
    ("vectors of another length", NOT_NORMALIZED, _are_right_but_for_their_length),
    (
        "count of padding",
        "The prompt tokens of embeddings are counted with their padding, or of the longest text "
        "alone: add up the tokens of each text.",
        _counts_padding,
    ),
    (
        "count without special tokens",
        "The prompt tokens of embeddings are counted without [CLS] and [SEP]: they belong to it.",
        _counts_without_specials,
    ),
    (
        "text cut elsewhere",
        "A long text is cut at another length: cut it at the limit that the request or the "
        "tokenizer's file says, special tokens included.",
        _is_cut_elsewhere,
    ),
    (
        "empty list refused",
        "An empty list of texts is refused: answer an empty list.",
        _refuses_nothing,
    ),
    (
        "empty text refused",
        "An empty text is refused: it has the special tokens, and so a vector.",
        _refuses_empty,
    ),
)

EMBEDDINGS: tuple[Symptom, ...] = (
    *(
        Symptom(
            name=name,
            cause=cause,
            groups=frozenset({"embeddings"}),
            evidence=partial(_share_of_vectors, name),
            is_slow=True,
        )
        for name, cause, _ in ENCODERS
    ),
    *(seen(name, cause, "embeddings", sees) for name, cause, sees in SEEN),
)
