"""The published embeddings of all-MiniLM-L6-v2: the file itself, then refllm against it.

sentence-transformers made the file (tools/make_embedding_goldens.py), so no
number expected here was computed by refllm.

Letters: N texts, D vector length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
from numpy.typing import NDArray

import refllm
from refllm.engine import LocalEngine

TOLERANCE = 1e-6
TOKENIZER_LIMIT = 128
SENTENCE_TRANSFORMERS_LIMIT = 256
LIMITS = (TOKENIZER_LIMIT, SENTENCE_TRANSFORMERS_LIMIT)


@runtime_checkable
class Embedder(Protocol):
    """The part of a loaded model that these tests use."""

    def embed(
        self, texts: Sequence[str], *, max_tokens: int | None = None
    ) -> NDArray[np.float32]: ...


def from_hex(numbers: list[str]) -> NDArray[np.float64]:
    return np.array([float.fromhex(number) for number in numbers])


def entry(text: dict[str, Any], limit: int) -> dict[str, Any]:
    """What the file says of one text under one limit; there must be exactly one such entry."""
    [found] = [answer for answer in text["embeddings"] if limit in answer["max_tokens"]]
    return dict(found)


def golden_vectors(golden: dict[str, Any], limit: int) -> NDArray[np.float64]:
    """All vectors under one limit, [N, D]."""
    return np.stack([from_hex(entry(text, limit)["vector"]) for text in golden["texts"]])


def texts_of(golden: dict[str, Any]) -> list[str]:
    return [text["text"] for text in golden["texts"]]


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> dict[str, Any]:
    path = golden_dir / "embeddings" / "all-minilm-l6-v2.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def model(minilm_dir: Path) -> Embedder:
    model = refllm.load(minilm_dir)
    assert isinstance(model, Embedder)
    return model


@pytest.fixture(scope="session")
def vectors(model: Embedder, golden: dict[str, Any]) -> NDArray[np.float32]:
    """refllm's answer for all texts at once, cut as tokenizer.json says, [N, D]."""
    return model.embed(texts_of(golden))


@pytest.fixture(scope="session")
def longer_vectors(model: Embedder, golden: dict[str, Any]) -> NDArray[np.float32]:
    """refllm's answer for all texts at once, cut as sentence-transformers does, [N, D]."""
    return model.embed(texts_of(golden), max_tokens=SENTENCE_TRANSFORMERS_LIMIT)


def test_the_file_has_twenty_texts_with_different_ids(golden: dict[str, Any]) -> None:
    assert len({text["id"] for text in golden["texts"]}) == len(golden["texts"]) == 20


def test_the_tolerance_is_above_rounding_and_below_a_wrong_formula(golden: dict[str, Any]) -> None:
    tolerance = golden["tolerance"]
    assert tolerance["absolute"] == TOLERANCE
    assert 2 * tolerance["largest_float32_float64_difference"] < TOLERANCE
    assert tolerance["smallest_tanh_gelu_difference"] > 2 * TOLERANCE


@pytest.mark.parametrize("limit", LIMITS)
def test_every_number_is_a_float32(golden: dict[str, Any], limit: int) -> None:
    numbers = golden_vectors(golden, limit)
    assert np.array_equal(numbers.astype(np.float32).astype(np.float64), numbers)


@pytest.mark.parametrize("limit", LIMITS)
def test_every_vector_has_length_one(golden: dict[str, Any], limit: int) -> None:
    lengths = np.sqrt(np.square(golden_vectors(golden, limit)).sum(axis=1))  # [N]
    assert np.abs(lengths - 1).max() <= TOLERANCE


def test_the_cosines_follow_from_the_vectors(golden: dict[str, Any]) -> None:
    numbers = golden_vectors(golden, SENTENCE_TRANSFORMERS_LIMIT)  # [N, D]
    lengths = np.sqrt(np.square(numbers).sum(axis=1))  # [N]
    expected = (numbers @ numbers.T) / np.outer(lengths, lengths)  # [N, N]
    cosine = np.stack([from_hex(row) for row in golden["cosine"]])  # [N, N]
    assert np.abs(cosine - expected).max() <= TOLERANCE


@pytest.mark.parametrize("limit", LIMITS)
def test_no_text_is_longer_than_the_limit_and_some_text_just_fits(
    golden: dict[str, Any], limit: int
) -> None:
    uncut = [text for text in golden["texts"] if len(text["embeddings"]) == 1]
    assert max(entry(text, limit)["token_count"] for text in golden["texts"]) == limit
    assert all(entry(text, limit)["token_count"] <= TOKENIZER_LIMIT for text in uncut)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_token_count_is_the_number_of_token_ids(golden: dict[str, Any], limit: int) -> None:
    entries = [entry(text, limit) for text in golden["texts"]]
    assert [e["token_count"] for e in entries] == [len(e["token_ids"]) for e in entries]


@pytest.mark.parametrize(
    ("one", "other"), [("short-sentence", "upper-case"), ("accents", "accents-decomposed")]
)
def test_case_and_unicode_form_make_no_difference(
    golden: dict[str, Any], one: str, other: str
) -> None:
    texts = {text["id"]: text for text in golden["texts"]}
    assert texts[one]["text"] != texts[other]["text"]
    assert texts[one]["embeddings"] == texts[other]["embeddings"]


def test_the_word_beyond_the_limit_makes_no_difference(golden: dict[str, Any]) -> None:
    texts = {text["id"]: text for text in golden["texts"]}
    fits, cut = (entry(texts[name], TOKENIZER_LIMIT) for name in ("passage-100", "passage-101"))
    assert fits["vector"] == cut["vector"]
    assert fits["vector"] != entry(texts["passage-101"], SENTENCE_TRANSFORMERS_LIMIT)["vector"]


def test_a_paraphrase_is_nearer_than_another_subject(golden: dict[str, Any]) -> None:
    number = {text["id"]: position for position, text in enumerate(golden["texts"])}
    row = from_hex(golden["cosine"][number["sentence"]])  # [N]
    assert row[number["paraphrase"]] > 0.5 > row[number["unrelated"]]


@pytest.mark.network
def test_refllm_agrees_under_the_limit_of_tokenizer_json(
    vectors: NDArray[np.float32], golden: dict[str, Any]
) -> None:
    off = np.abs(vectors - golden_vectors(golden, TOKENIZER_LIMIT))  # [N, D]
    ids = [text["id"] for text in golden["texts"]]
    assert vectors.dtype == np.float32
    assert {name: d for name, d in zip(ids, off.max(axis=1), strict=True) if d > TOLERANCE} == {}


@pytest.mark.network
def test_refllm_agrees_under_the_limit_of_sentence_transformers(
    longer_vectors: NDArray[np.float32], golden: dict[str, Any]
) -> None:
    off = np.abs(longer_vectors - golden_vectors(golden, SENTENCE_TRANSFORMERS_LIMIT))  # [N, D]
    ids = [text["id"] for text in golden["texts"]]
    assert {name: d for name, d in zip(ids, off.max(axis=1), strict=True) if d > TOLERANCE} == {}


@pytest.mark.network
def test_refllm_agrees_on_every_cosine(
    longer_vectors: NDArray[np.float32], golden: dict[str, Any]
) -> None:
    numbers = longer_vectors.astype(np.float64)  # [N, D]
    cosine = np.stack([from_hex(row) for row in golden["cosine"]])  # [N, N]
    assert np.abs(numbers @ numbers.T - cosine).max() <= TOLERANCE


@pytest.mark.network
def test_a_vector_has_the_same_bits_alone_and_in_a_batch(
    model: Embedder, vectors: NDArray[np.float32], golden: dict[str, Any]
) -> None:
    alone = np.concatenate([model.embed([text]) for text in texts_of(golden)])  # [N, D]
    assert alone.tobytes() == vectors.tobytes()


@pytest.mark.network
def test_a_vector_is_the_same_bits_in_any_order(
    model: Embedder, vectors: NDArray[np.float32], golden: dict[str, Any]
) -> None:
    backwards = model.embed(texts_of(golden)[::-1])  # [N, D]
    assert backwards[::-1].tobytes() == vectors.tobytes()


@pytest.mark.network
@pytest.mark.parametrize("threads", [1, 2])
def test_a_vector_is_the_same_bits_on_any_number_of_threads(
    minilm_dir: Path, vectors: NDArray[np.float32], golden: dict[str, Any], threads: int
) -> None:
    engine = LocalEngine(threads=threads, roots=[minilm_dir.parent])
    result = engine.generate_embeddings("all-minilm-l6-v2", texts_of(golden))
    assert np.array(result.embeddings, dtype=np.float32).tobytes() == vectors.tobytes()


@pytest.mark.network
def test_the_usage_counts_the_tokens_that_are_left_after_cutting(
    minilm_dir: Path, golden: dict[str, Any]
) -> None:
    engine = LocalEngine(roots=[minilm_dir.parent])
    result = engine.generate_embeddings("all-minilm-l6-v2", texts_of(golden))
    counts = [entry(text, TOKENIZER_LIMIT)["token_count"] for text in golden["texts"]]
    assert result.usage.prompt_token_count == sum(counts)
