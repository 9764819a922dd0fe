"""The engine embeds texts: no vector depends on anything but its text."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from refllm.api import (
    EmbeddingsResult,
    InvalidInput,
    LlmRuntimeError,
)
from refllm.bert import Bert
from refllm.engine import LocalEngine
from refllm.jit.threads import available_cpus
from tests.support.engines import TEXTS, vectors


def test_a_vector_never_depends_on_the_other_texts(tiny_engine: LocalEngine) -> None:
    together = vectors(tiny_engine)
    assert [vectors(tiny_engine, [text])[0] for text in TEXTS] == together
    assert vectors(tiny_engine, TEXTS[::-1]) == together[::-1]


def test_many_texts_are_computed_in_groups_that_change_nothing(tiny_engine: LocalEngine) -> None:
    many = TEXTS * 300
    assert vectors(tiny_engine, many) == vectors(tiny_engine) * 300


def test_threads_share_many_texts_and_change_nothing(
    tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = vectors(tiny_engine)
    computed: list[tuple[int, int]] = []  # thread and number of texts of each call
    embed = Bert.embed

    def recorded(self: Bert, texts: list[list[int]], **options: object) -> object:
        computed.append((threading.get_ident(), len(texts)))
        return embed(self, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Bert, "embed", recorded)
    monkeypatch.setattr(tiny_engine, "threads", 2)
    if available_cpus() < 2:
        pytest.skip("one CPU has one thread")
    assert vectors(tiny_engine, TEXTS * 20) == alone * 20
    assert threading.get_ident() not in {thread for thread, _ in computed}
    assert len(computed) == 2
    assert sum(n_texts for _, n_texts in computed) == len(TEXTS) * 20


def test_an_error_in_one_of_the_threads_reaches_the_caller(
    tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_self: Bert, texts: list[list[int]], **_options: object) -> object:
        raise LlmRuntimeError(f"{len(texts)} texts failed")

    monkeypatch.setattr(Bert, "embed", failing)
    with pytest.raises(LlmRuntimeError, match="texts failed"):
        vectors(tiny_engine, TEXTS * 20)


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
