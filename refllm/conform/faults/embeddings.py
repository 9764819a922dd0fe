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
from refllm.trace.faults.bert import ENCODER_FAULTS

__all__ = ["EMBEDDINGS", "vectors"]

EMBEDDINGS = Faults("embeddings")

# Vectors are small: enough for every fault in all cases that a run asks it about.
MAX_KEPT = 1024


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


def _with_length_1(_case: Case, got: Json) -> Json:
    vectors = [np.array(vector, np.float64) for vector in got["embeddings"]]
    lengths = [float(np.linalg.norm(vector)) or 1.0 for vector in vectors]
    scaled = [(v / length).tolist() for v, length in zip(vectors, lengths, strict=True)]
    return {**got, "embeddings": scaled}


for _fault in ENCODER_FAULTS:
    _encoder(
        _fault.name,
        _fault.cause,
        _fault.encoder,
        op=_fault.op,
        repair=_with_length_1 if _fault.name == "embeddings not normalized" else None,
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
