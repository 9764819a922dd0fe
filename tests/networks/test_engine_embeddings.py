"""The engine embeds texts: no vector depends on anything but its text."""

from __future__ import annotations

import numpy as np
import pytest

from refllm.api import (
    EmbeddingsResult,
    InvalidInput,
    LlmRuntimeError,
)
from refllm.engine import LocalEngine
from tests.support.engines import TEXTS, vectors


def test_a_vector_never_depends_on_the_other_texts(tiny_engine: LocalEngine) -> None:
    together = vectors(tiny_engine)
    assert [vectors(tiny_engine, [text])[0] for text in TEXTS] == together
    assert vectors(tiny_engine, TEXTS[::-1]) == together[::-1]


def test_many_texts_are_computed_in_groups_that_change_nothing(tiny_engine: LocalEngine) -> None:
    many = TEXTS * 300
    assert vectors(tiny_engine, many) == vectors(tiny_engine) * 300


def test_every_value_of_a_vector_is_a_float32(tiny_engine: LocalEngine) -> None:
    values = np.array(vectors(tiny_engine))
    assert (values == values.astype(np.float32)).all()


def test_the_token_count_is_the_sum_over_texts_special_tokens_included(
    tiny_engine: LocalEngine,
) -> None:
    bert = tiny_engine.load("embedder")
    counts = [len(bert.tokenizer.encode(text)) for text in TEXTS]
    usage = tiny_engine.generate_embeddings("embedder", TEXTS).usage
    assert usage.prompt_token_count == sum(counts)


def test_no_texts_give_an_empty_result(tiny_engine: LocalEngine) -> None:
    result: EmbeddingsResult = tiny_engine.generate_embeddings("embedder", [])
    assert (result.embeddings, result.usage.prompt_token_count) == ([], 0)


def test_a_single_text_in_place_of_a_list_is_refused(tiny_engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match="list of texts"):
        tiny_engine.generate_embeddings("embedder", "a text")


def test_a_result_over_128_mib_is_a_runtime_error(tiny_engine: LocalEngine) -> None:
    n_texts = 128 * 1024 * 1024 // (32 * 4) + 1
    with pytest.raises(LlmRuntimeError, match="query result exceeds limit of 134217728 bytes"):
        tiny_engine.generate_embeddings("embedder", ["a"] * n_texts)
