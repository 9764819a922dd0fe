"""Faults of embeddings: each computes the case's vectors itself, in float64.

N texts, T tokens of the longest, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.catalog import Faults, explained_share
from refllm.conform.faults.faulty_bert import Encoder, embeddings
from refllm.conform.faults.float64_models import tiny_embed_tokenizer, tiny_embed_weights
from refllm.conform.faults.formulas import Mask, gelu_sigmoid, gelu_tanh, relu, silu

__all__ = ["EMBEDDINGS", "vectors"]

EMBEDDINGS = Faults("embeddings")

# Vectors are small: enough for every fault in all cases that a run asks it about.
MAX_KEPT = 1024
EPSILONS = (1e-5, 1e-6, 1e-12)


def _token_ids(texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
    return [tiny_embed_tokenizer().encode(text, max_tokens=max_tokens) for text in texts]


@lru_cache(MAX_KEPT)
def vectors(name: str | None, texts: tuple[str, ...], max_tokens: int | None) -> Doubles:
    """Return the vectors [N, D] of tiny-embed with the fault of that name, or with none."""
    encoder = Encoder() if name is None else EMBEDDINGS.named(name).wrong
    with np.errstate(all="ignore"):
        return embeddings(tiny_embed_weights(), _token_ids(texts, max_tokens), encoder)


def _found(got: Json) -> Doubles:
    return np.array([[float(value) for value in vector] for vector in got["embeddings"]])


def _encoder(name: str, cause: str, encoder: Encoder, *, op: str = "", **options: Any) -> None:
    """Add a fault of the encoder; `op` is the operation that shows it alone."""

    def evidence(case: Case, got: Json) -> float:
        if case.input["model"] != "tiny-embed" or not case.input["texts"]:
            return 0.0
        asked = tuple(case.input["texts"]), case.input.get("max_tokens")
        difference = _found(got) - np.array(case.expected["embeddings"], float)  # [N, D]
        return explained_share(difference, vectors(name, *asked) - vectors(None, *asked))

    EMBEDDINGS.add(name, cause, evidence, is_slow=True, wrong=encoder, op=op, **options)


def _mean_between_specials(x: Doubles, is_real: Mask) -> Doubles:
    """Without [CLS] and [SEP]; of a text that has nothing else, with them."""
    inside = is_real.copy()
    inside[:, 0] = False
    inside[np.arange(len(x)), is_real.sum(axis=1) - 1] = False
    inside = np.where(inside.any(axis=1, keepdims=True), inside, is_real)
    result: Doubles = (x * inside[..., None]).sum(axis=1) / inside.sum(axis=1, keepdims=True)
    return result


def _with_length_1(_case: Case, got: Json) -> Json:
    vectors = [np.array(vector, np.float64) for vector in got["embeddings"]]
    lengths = [float(np.linalg.norm(vector)) or 1.0 for vector in vectors]
    scaled = [(v / length).tolist() for v, length in zip(vectors, lengths, strict=True)]
    return {**got, "embeddings": scaled}


_encoder(
    "tanh GELU",
    "GELU is computed by its approximation with tanh: compute x/2·(1 + erf(x/√2)), as the model's "
    "configuration says.",
    Encoder(activation=gelu_tanh),
    op="gelu",
)
_encoder(
    "sigmoid GELU",
    "GELU is computed by its approximation with a sigmoid: compute x/2·(1 + erf(x/√2)).",
    Encoder(activation=gelu_sigmoid),
    op="gelu",
)
_encoder(
    "ReLU for GELU",
    "The feed-forward network uses ReLU: a BERT uses GELU.",
    Encoder(activation=relu),
    op="gelu",
)
_encoder(
    "SiLU for GELU",
    "The feed-forward network uses SiLU: a BERT uses GELU.",
    Encoder(activation=silu),
    op="gelu",
)
for _eps in EPSILONS:
    _encoder(
        f"LayerNorm epsilon {_eps:g}",
        f"LayerNorm adds the epsilon {_eps:g}: take it from the model's file "
        "(bert.attention.layer_norm_epsilon, layer_norm_eps).",
        Encoder(eps=_eps),
        op="layer_norm",
    )
_encoder(
    "padded mean pooling",
    "Padding is computed like text: no attention mask, and the mean is over the padded length, so "
    "a text's vector depends on the texts beside it. Mask the padding in attention and leave it "
    "out of the mean.",
    Encoder(masks=False, pool=lambda x, _is_real: x.mean(axis=1)),
)
_encoder(
    "padding in the mean",
    "The mean is over the padded length, so a text's vector depends on the texts beside it: take "
    "the mean of the real tokens.",
    Encoder(pool=lambda x, _is_real: x.mean(axis=1)),
    op="mean_pool",
)
_encoder(
    "no attention mask",
    "Texts attend to their padding, so a text's vector depends on the texts beside it: mask the "
    "padding in attention.",
    Encoder(masks=False),
)
_encoder(
    "embeddings not normalized",
    "The vectors are not scaled to length 1: divide each by its length.",
    Encoder(normalize=lambda x: x),
    repair=_with_length_1,
    op="l2_normalize",
)
_encoder(
    "CLS pooling",
    "A text's vector is that of its first token: take the mean of all tokens.",
    Encoder(pool=lambda x, _is_real: x[:, 0]),
    op="mean_pool",
)
_encoder(
    "last token pooling",
    "A text's vector is that of its last token: take the mean of all tokens.",
    Encoder(pool=lambda x, is_real: x[np.arange(len(x)), is_real.sum(axis=1) - 1]),
)
_encoder(
    "max pooling",
    "A text's vector is the largest of each component: take the mean of all tokens.",
    Encoder(pool=lambda x, is_real: np.where(is_real[..., None], x, -np.inf).max(axis=1)),
)
_encoder(
    "mean without special tokens",
    "[CLS] and [SEP] are left out of the mean: they belong to it.",
    Encoder(pool=_mean_between_specials),
)
_encoder(
    "special tokens missing",
    "A text is embedded without [CLS] and [SEP]: the tokenizer adds both.",
    Encoder(tokens=lambda ids: ids[1:-1] or ids),
)
_encoder(
    "CLS missing",
    "A text is embedded without [CLS]: the tokenizer adds it in front.",
    Encoder(tokens=lambda ids: ids[1:]),
)
_encoder(
    "SEP missing",
    "A text is embedded without [SEP]: the tokenizer adds it at the end.",
    Encoder(tokens=lambda ids: ids[:-1]),
)
_encoder(
    "encoder attends causally",
    "Tokens do not attend to those after them: an encoder has no causal mask.",
    Encoder(is_causal=True),
)
_encoder(
    "scores not scaled",
    "Attention scores are not scaled: divide them by the root of the head's width.",
    Encoder(scale=lambda _head_dim: 1.0),
)
_encoder(
    "positions from one",
    "Position embeddings begin with number 1: the first token has position 0.",
    Encoder(first_position=1),
)
_encoder(
    "positions from two",
    "Position embeddings begin with number 2, as RoBERTa's do: the first token has position 0.",
    Encoder(first_position=2),
)
_encoder("positions missing", "Position embeddings are not added.", Encoder(has_positions=False))
_encoder(
    "token types missing",
    "Token type embeddings are not added: those of type 0 belong to every token.",
    Encoder(token_type=None),
)
_encoder(
    "second token type",
    "Token type 1 is added: the tokens of a single text have type 0.",
    Encoder(token_type=1),
)
_encoder(
    "encoder residual missing",
    "What a block of the encoder gives replaces its input: add it to the input.",
    Encoder(adds_residual=False),
)


def _vectors_are_right(case: Case, got: Json) -> bool:
    expected, found = np.array(case.expected["embeddings"], float), _found(got)
    bound = float(case.tolerance["absolute"])
    return found.shape == expected.shape and bool((np.abs(found - expected) <= bound).all())


@EMBEDDINGS.seen("vectors of another length", EMBEDDINGS.named("embeddings not normalized").cause)
def _vectors_of_another_length(case: Case, got: Json) -> bool:
    """The vectors are right once each is divided by its length."""
    found = _found(got)
    if found.ndim != 2 or _vectors_are_right(case, got):
        return False
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return bool((lengths > 0).all()) and _vectors_are_right(case, {"embeddings": found / lengths})


@EMBEDDINGS.seen(
    "count of padding",
    "The prompt tokens of embeddings are counted with their padding, or of the longest text alone: "
    "add up the tokens of each text.",
)
def _count_of_padding(case: Case, got: Json) -> bool:
    """The count is the padded length of one text, or of all."""
    if case.input["model"] != "tiny-embed" or not case.input["texts"]:
        return False
    ids = _token_ids(case.input["texts"], case.input.get("max_tokens"))
    longest = max(map(len, ids))
    count = got["usage"]["prompt_token_count"]
    return _vectors_are_right(case, got) and count in (longest, longest * len(ids))


@EMBEDDINGS.seen(
    "count without special tokens",
    "The prompt tokens of embeddings are counted without [CLS] and [SEP]: they belong to it.",
)
def _count_without_special_tokens(case: Case, got: Json) -> bool:
    n_specials = 2 * len(case.input["texts"])
    found, expected = (int(a["usage"]["prompt_token_count"]) for a in (got, case.expected))
    return _vectors_are_right(case, got) and found - expected == -n_specials != 0


@EMBEDDINGS.seen(
    "text cut elsewhere",
    "A long text is cut at another length: cut it at the limit that the request or the tokenizer's "
    "file says, special tokens included.",
)
def _text_cut_elsewhere(case: Case, got: Json) -> bool:
    """The one text's vector is that of fewer or more of its tokens."""
    if case.input["model"] != "tiny-embed" or len(case.input["texts"]) != 1:
        return False
    [whole] = _token_ids(case.input["texts"], tiny_embed_weights().config.n_ctx)
    count = int(got["usage"]["prompt_token_count"])
    if count == case.expected["usage"]["prompt_token_count"] or not 2 < count <= len(whole):
        return False
    cut, found = vectors(None, tuple(case.input["texts"]), count), _found(got)
    return found.shape == cut.shape and bool(np.allclose(found, cut, atol=1e-5))


EMBEDDINGS.seen("empty list refused", "An empty list of texts is refused: answer an empty list.")(
    lambda case, got: "error" in got and not case.input["texts"]
)
EMBEDDINGS.seen(
    "empty text refused", "An empty text is refused: it has the special tokens, and so a vector."
)(lambda case, got: "error" in got and "" in case.input["texts"])
