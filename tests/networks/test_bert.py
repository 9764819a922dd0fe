"""The BERT encoder against the oracle, and everything that must not change a bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle
from refllm.api import InvalidInput, LlmRuntimeError
from refllm.bert import Bert
from refllm.checkpoints.open import open_weights
from refllm.jit.compile import use_threads
from tests.support.model_files import tiny_bert_folder, tiny_bert_gguf
from tests.support.networks import arrays_of, open_bert, same_bits

Floats = NDArray[np.float32]
TEXTS = [[1, 5, 9, 2], [1, 2], [1, 7, 7, 7, 8, 11, 3, 2], [1, 30, 2], list(range(1, 30))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_gguf(tmp_path_factory.mktemp("bert") / "tiny.gguf")


@pytest.fixture(scope="module")
def bert(path: Path) -> Bert:
    return open_bert(path)


@pytest.mark.parametrize("text", TEXTS, ids=len)
def test_a_text_equals_the_oracle(text: list[int], bert: Bert, path: Path) -> None:
    exact = oracle.bert(bert.config, arrays_of(path), text)
    assert same_bits(bert.embed([text])[0], exact)


def test_the_error_against_float64_is_that_of_float32(bert: Bert, path: Path) -> None:
    wide = oracle.bert(bert.config, arrays_of(path, np.float64), TEXTS[2])
    np.testing.assert_allclose(bert.embed([TEXTS[2]])[0], wide, atol=1e-6)


def test_a_text_has_the_same_bits_alone_and_in_a_batch(bert: Bert) -> None:
    together = bert.embed(TEXTS)
    alone = np.concatenate([bert.embed([text]) for text in TEXTS])
    assert same_bits(together, alone)
    assert same_bits(bert.embed(TEXTS[::-1]), together[::-1])


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(n_threads: int, bert: Bert) -> None:
    expected = bert.embed(TEXTS)
    use_threads(n_threads)
    assert same_bits(bert.embed(TEXTS), expected)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_folder_and_a_gguf_of_the_same_weights_give_the_same_bits(
    prefix: str, bert: Bert, tmp_path: Path
) -> None:
    folder = open_bert(tiny_bert_folder(tmp_path / "folder", prefix=prefix))
    assert same_bits(folder.embed(TEXTS), bert.embed(TEXTS))


def test_vectors_have_length_one(bert: Bert) -> None:
    lengths = np.linalg.norm(bert.embed(TEXTS).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)


def test_the_tap_sees_llama_cpps_names_in_order_and_changes_nothing(bert: Bert) -> None:
    seen: list[tuple[str, Floats]] = []
    tapped = bert.embed([TEXTS[0]], tap=lambda name, array: seen.append((name, array)))
    assert same_bits(tapped, bert.embed([TEXTS[0]]))
    layer = ["Qcur", "Kcur", "Vcur", "kq_soft_max", "kqv_out", "attn_out", "ffn_inp"]
    layer += ["ffn_up", "ffn_gelu", "ffn_out", "l_out"]
    names = [f"{name}-{i}" for i in range(bert.config.n_layers) for name in layer]
    ends = ["result_embd_pooled", "result_embd"]
    assert [name for name, _ in seen] == ["inp_embd", "inp_norm", *names, *ends]
    values = dict(seen)
    n_tokens = len(TEXTS[0])
    assert values["kq_soft_max-0"].shape == (bert.config.n_heads, n_tokens, n_tokens)
    np.testing.assert_allclose(values["kq_soft_max-0"].sum(axis=-1), 1.0, atol=1e-6)


def test_nan_weights_are_an_error_that_names_the_layer(path: Path, tmp_path: Path) -> None:
    weight = open_weights(path).tensors["blk.1.ffn_up.weight"].array().copy()
    weight[0] = np.nan
    bad = open_bert(tiny_bert_gguf(tmp_path / "bad.gguf", tensors={"blk.1.ffn_up.weight": weight}))
    with pytest.raises(LlmRuntimeError, match="layer 1, value ffn_up"):
        bad.embed(TEXTS)


def test_tokens_that_cannot_be_computed_are_refused(bert: Bert) -> None:
    with pytest.raises(InvalidInput, match="without a single token"):
        bert.embed([[1, 2], []])
    with pytest.raises(InvalidInput, match="token id 999999 is outside the vocabulary"):
        bert.embed([[1, 999999]])
    n_ctx = bert.config.n_ctx
    with pytest.raises(InvalidInput, match=f"{n_ctx + 1} tokens does not fit .* {n_ctx} tokens"):
        bert.embed([[1] * (n_ctx + 1)])


@pytest.mark.parametrize("name", ["position_embd.weight", "blk.0.attn_q.bias"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    bad = tiny_bert_gguf(tmp_path / "bad.gguf", tensors={name: None})
    with pytest.raises(LlmRuntimeError, match=rf"bad\.gguf.*{name} is missing"):
        open_bert(bad)
