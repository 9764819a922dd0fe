"""What the contestants of the benchmarks are given: models and texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.contestants.embedder import embed_sorted
from benchmarks.embed import model_tokenizer
from benchmarks.synthetic import QUICK_SHAPE, SHAPES, model_file
from benchmarks.texts import real_sentences, uniform_texts
from refllm.checkpoints.open import open_weights
from tests.support.benchmark_runs import NO_PYTHON


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Path) -> Tokenizer:
    return model_tokenizer(tiny_models / "embedder")


def test_a_synthetic_model_has_the_parameters_of_its_shape(tmp_path: Path) -> None:
    path = model_file(tmp_path, QUICK_SHAPE, "F16", peer_python=NO_PYTHON)
    tensors = open_weights(path).tensors.values()
    n_weights = sum(np.prod(tensor.shape) for tensor in tensors if len(tensor.shape) == 2)
    assert n_weights == SHAPES[QUICK_SHAPE].n_parameters


def test_real_sentences_are_different_short_enough_and_the_same_each_time(
    tokenizer: Tokenizer,
) -> None:
    sentences = real_sentences(tokenizer, 50, max_tokens=40)
    assert len(set(sentences)) == 50
    assert max(len(tokenizer.encode(sentence).ids) for sentence in sentences) <= 40
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert sentences == real_sentences(tokenizer, 50, max_tokens=40)


def test_uniform_texts_all_have_the_length_asked_for(
    tokenizer: Tokenizer,
) -> None:
    texts = uniform_texts(tokenizer, 5, 20)
    assert [len(tokenizer.encode(text).ids) for text in texts] == [20] * 5


def test_sorted_batches_give_the_embeddings_back_in_the_order_of_the_texts() -> None:
    widths = []

    def sums(token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        widths.append(token_ids.shape[1])
        embeddings: NDArray[np.float32] = (token_ids * mask).sum(1, keepdims=True).astype("f4")
        return embeddings

    texts = [[1], [2, 3, 4], [5, 6], [7, 8, 9, 10], [11]]
    embeddings = embed_sorted(sums, texts, 2)
    assert embeddings[:, 0].tolist() == [1, 9, 11, 34, 11]
    assert widths == [4, 2, 1]
