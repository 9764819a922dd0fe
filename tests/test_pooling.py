"""What follows the encoder, against sentence-transformers; and the bits of the mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.loading import BertModel, load_path
from tests.peer_values import peer_values
from tests.sentence_folders import (
    CASES,
    TEXTS,
    recorded_places,
)

Floats = NDArray[np.float32]
# Both sum float32 in their own order: 2e-7 of a value around 1 for each layer of the encoder, and
# up to six times that after pooling's sums and a dense layer.
PEER_ERROR = 1e-5
MINILM_ERROR = 1e-6  # the file has eight digits of numbers below 0.2
RECORDED = peer_values("pooling")


def open_model(path: Path) -> BertModel:
    model = load_path(path)
    assert isinstance(model, BertModel)
    return model


def same_bits(a: Floats, b: Floats) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def normalized(x: Floats) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def test_every_case_is_recorded_and_nothing_else() -> None:
    assert RECORDED.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    model = open_model(CASES[name].write(tmp_path / "model"))
    vectors = model.embed(TEXTS, max_tokens=model.max_seq_length, **CASES[name].options)
    expected = RECORDED[name]
    assert vectors.shape == (len(TEXTS), expected["width"]) == (len(TEXTS), model.width)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, expected["lengths"], rtol=PEER_ERROR)
    numbers = vectors[:, recorded_places(model.width)]
    np.testing.assert_allclose(numbers, expected["numbers"], rtol=PEER_ERROR, atol=PEER_ERROR)
