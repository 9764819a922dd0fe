"""BERT by the numerics `int8`: the bits of its rule, and the same invariances as `exact`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import refllm
from refllm import oracle, oracle_int8
from refllm.checkpoints.open import open_weights
from refllm.export import quantize
from refllm.jit.compile import use_threads
from refllm.kernels.packed.panels import Panels
from refllm.models.load import BertModel, load_path
from refllm.quant import Tensor
from tests.conftest import PROJECT
from tests.support.model_files import tiny_bert_gguf
from tests.support.networks import random_floats, same_bits
from tools.compare_int8_embeddings import cosines, golden_texts, vectors

Floats = NDArray[np.float32]
LENGTHS = (1, 2, 3, 5, 8, 17, 40)
"""Of texts in tokens: one row of a matrix is a product by itself, and rows are multiplied several
at a time."""


def texts(n_vocab: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, n_vocab, length).tolist() for length in LENGTHS]


def open_int8(path: Path) -> BertModel:
    model = load_path(path, numerics="int8")
    assert isinstance(model, BertModel)
    return model


def expected(model: BertModel, text: list[int], monkeypatch: pytest.MonkeyPatch) -> Floats:
    """The oracle's BERT, with the layers' matrices multiplied by the rule of `oracle_int8`."""
    plain = oracle.matmul

    def matmul(x: Floats, w: Floats | Tensor) -> Floats:
        return oracle_int8.matmul(x, w) if isinstance(w, Tensor) else plain(x, w)

    def is_multiplied_as_integers(tensor: Tensor) -> bool:
        is_looked_up = not tensor.name.startswith("blk.")
        return len(tensor.shape) == 2 and tensor.format.block_size > 1 and not is_looked_up

    weights: Mapping[str, object] = {
        name: tensor if is_multiplied_as_integers(tensor) else tensor.array()
        for name, tensor in open_weights(model.path).tensors.items()
    }
    with monkeypatch.context() as patched:
        patched.setattr(oracle, "matmul", matmul)
        return oracle.bert(model.config, weights, text)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertModel:
    path = tiny_bert_gguf(tmp_path_factory.mktemp("int8") / "tiny.gguf", type="Q8_0")
    return open_int8(path)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0"])
def test_every_text_equals_the_oracle_of_int8(
    type_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_int8(tiny_bert_gguf(tmp_path / "tiny.gguf", type=type_name))
    for text in texts(model.network.n_vocab):
        assert same_bits(model.embed_tokens([text])[0], expected(model, text, monkeypatch))


def test_matrices_of_floats_between_quantized_ones_stay_exact(
    bert: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = random_floats(32, 32)
    mixed = {"blk.0.attn_k.weight": keys}
    model = open_int8(tiny_bert_gguf(tmp_path / "mixed.gguf", type="Q8_0", tensors=mixed))
    assert len(model.network.layers[0].attn_qkv.weights) == 3
    for text in texts(bert.network.n_vocab):
        assert same_bits(model.embed_tokens([text])[0], expected(model, text, monkeypatch))


def test_all_matrices_of_the_layers_are_packed_for_integers(bert: BertModel) -> None:
    for layer in bert.network.layers:
        for part in (layer.attn_qkv, layer.attn_output, layer.ffn_up, layer.ffn_down):
            assert not any(isinstance(weight, Panels) for weight in part.weights)


def test_the_numerics_differ_a_little(bert: BertModel) -> None:
    exact = refllm.load(bert.path)
    assert isinstance(exact, BertModel)
    many = texts(bert.network.n_vocab)
    a, b = exact.embed_tokens(many), bert.embed_tokens(many)
    assert not same_bits(a, b)
    np.testing.assert_allclose(np.sum(a * b, axis=1), 1, atol=0.01)


def test_a_text_has_the_same_bits_alone_and_in_company(bert: BertModel) -> None:
    many = texts(bert.network.n_vocab)
    together = bert.network.embed(many)
    assert same_bits(together, np.concatenate([bert.network.embed([text]) for text in many]))
    assert same_bits(together[::-1], bert.network.embed(many[::-1]))


@pytest.mark.usefixtures("all_threads")
def test_one_thread_and_two_give_the_same_bits(bert: BertModel) -> None:
    many = texts(bert.network.n_vocab) * 40  # enough work for several threads
    found = []
    for n_threads in (1, 2):
        use_threads(n_threads)
        found.append(bert.embed_tokens(many))
    assert same_bits(*found)


def test_an_engine_embeds_by_its_numerics(bert: BertModel) -> None:
    result = refllm.LocalEngine(numerics="int8").generate_embeddings(bert.path, ["the cat sat"])
    assert same_bits(np.array(result.embeddings, np.float32), bert.embed(["the cat sat"]))


def test_a_model_without_quantized_matrices_is_exact_and_says_how_to_quantize_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_bert_gguf(tmp_path / "tiny.gguf")
    model, exact = open_int8(path), refllm.load(path)
    assert isinstance(exact, BertModel)
    [message] = caplog.messages
    assert f"refllm models quantize {path} --type Q8_0" in message
    assert same_bits(model.embed(["the cat"]), exact.embed(["the cat"]))


# all-MiniLM-L6-v2


@pytest.fixture(scope="module")
def minilm(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BertModel:
    path = tmp_path_factory.mktemp("minilm") / "all-minilm-l6-v2-Q8_0.gguf"
    quantize(minilm_dir, path, type_name="Q8_0")
    return open_int8(path)


def test_a_sentence_by_the_published_model_equals_the_oracle_of_int8(
    minilm: BertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    [text] = minilm.tokenize(["The cat sat on the mat."]).token_ids
    assert same_bits(minilm.embed_tokens([text])[0], expected(minilm, text, monkeypatch))


def test_the_published_cosines_are_those_of_the_golden_texts(
    minilm: BertModel, minilm_dir: Path
) -> None:
    page = (PROJECT / "docs" / "models.md").read_text("utf-8")
    published = re.findall(
        r"^\| cosine, 20 golden .* least \| (\S+) .*\n\| mean \| (\S+) ", page, re.M
    )
    right = vectors(minilm_dir, "exact", golden_texts())
    found = cosines(vectors(minilm.path, "int8", golden_texts()), right)
    np.testing.assert_allclose(
        [found.min(), found.mean()], np.array(published[0], float), atol=2e-5
    )
