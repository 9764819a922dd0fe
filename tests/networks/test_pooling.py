"""What follows the encoder, against sentence-transformers and llama.cpp; prompts; cut texts."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.checkpoints.sentence_config import SentenceConfig
from refllm.engine import LocalEngine
from refllm.kernels.elementwise import gelu_tanh, l2_normalize, mean_rows, relu
from refllm.kernels.pooling import max_rows, mean_sqrt_rows, weighted_mean_rows
from refllm.models.load import BertModel, load_path
from refllm.pooling import Pooling, PoolingMode, SentenceHead
from tests.conftest import handed_cases
from tests.support.model_files import tiny_bert_folder, tiny_bert_gguf
from tests.support.networks import open_bert, same_bits
from tests.support.peer_values import peer_values
from tests.support.sentence_folders import (
    CASES,
    GGUF_KEYS,
    GGUF_TEXTS,
    MODES,
    NORMALIZE,
    PROMPTS,
    TEXTS,
    dense,
    pooling,
    recorded_places,
    write_sentence_folder,
)

Floats = NDArray[np.float32]
# Both sum float32 in their own order: 2e-7 of a value around 1 for each layer of the encoder, and
# up to six times that after pooling's sums and a dense layer.
PEER_ERROR = 1e-5
LLAMA_CPP_ERROR = 1e-3  # it rounds what it multiplies to float16 (measured: 2e-4)
MINILM_ERROR = 1e-6  # the file has eight digits of numbers below 0.2


def open_model(path: Path) -> BertModel:
    model = load_path(path)
    assert isinstance(model, BertModel)
    return model


def test_every_case_is_recorded_and_nothing_else() -> None:
    assert peer_values("pooling").keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = open_model(case.write(tmp_path / "model"))
    vectors = model.embed(
        TEXTS,
        max_tokens=model.max_seq_length,
        prompt_name=case.options.get("prompt_name"),
        prompt=case.options.get("prompt"),
    )
    expected = peer_values("pooling")[name]
    assert vectors.shape == (len(TEXTS), expected["width"]) == (len(TEXTS), model.width)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, expected["lengths"], rtol=PEER_ERROR)
    numbers = vectors[:, recorded_places(model.width)]
    np.testing.assert_allclose(numbers, expected["numbers"], rtol=PEER_ERROR, atol=PEER_ERROR)


@pytest.mark.parametrize("pooling_type", ["1", "2", "3"])
def test_a_gguf_gives_the_vectors_of_llama_cpp(pooling_type: str, tmp_path: Path) -> None:
    keys = {**GGUF_KEYS, "bert.pooling_type": int(pooling_type)}
    model = open_model(tiny_bert_gguf(tmp_path / "model.gguf", metadata=keys))
    vectors = model.embed(GGUF_TEXTS)
    expected = peer_values("pooling_gguf")[pooling_type]
    assert vectors.shape == (len(GGUF_TEXTS), expected["width"])
    numbers = vectors[:, recorded_places(model.width)]
    np.testing.assert_allclose(numbers, expected["numbers"], atol=LLAMA_CPP_ERROR)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens"])
def test_minilm_pooled_otherwise_gives_the_vectors_of_transformers(
    mode: PoolingMode, minilm_dir: Path
) -> None:
    known = handed_cases("pooling")
    model = open_model(minilm_dir)
    token_ids = model.tokenize(known["texts"]).token_ids
    head = SentenceHead(pooling=Pooling(modes=(mode,)))
    vectors = model.embed_tokens(token_ids, head=head)
    expected = np.array(known[mode.removesuffix("_tokens")])
    np.testing.assert_allclose(vectors[:, : expected.shape[1]], expected, atol=MINILM_ERROR)


# The kernels


RANDOM = np.random.default_rng(3).standard_normal((5, 7)).astype(np.float32)


def test_the_largest_value_is_copied() -> None:
    assert same_bits(max_rows(RANDOM), RANDOM.max(axis=0))


@pytest.mark.parametrize("n_left_out", [0, 2])
def test_sums_are_float64_from_left_to_right_and_rounded_once(n_left_out: int) -> None:
    for d in range(RANDOM.shape[1]):
        total, weighted, weights = 0.0, 0.0, 0.0
        for t in range(len(RANDOM)):
            total += float(RANDOM[t, d])
            weighted += float(RANDOM[t, d]) * (t + 1 + n_left_out)
            weights += t + 1 + n_left_out
        assert mean_sqrt_rows(RANDOM)[d] == np.float32(total / math.sqrt(len(RANDOM)))
        assert weighted_mean_rows(RANDOM, 1 + n_left_out)[d] == np.float32(weighted / weights)


def test_relu_keeps_nan_and_what_is_positive() -> None:
    result = relu(np.array([[-1.0, 0.0, 2.0, np.nan, -np.inf]], np.float32))[0]
    assert result[:3].tolist() == [0.0, 0.0, 2.0]
    assert np.isnan(result[3])
    assert result[4] == 0


def test_the_mean_of_the_hidden_states_is_what_embed_gives(tmp_path: Path) -> None:
    bert = open_bert(tiny_bert_gguf(tmp_path / "tiny.gguf"))
    text = [2, 9, 17, 3]
    hidden = bert.hidden([text])
    assert hidden.shape == (4, 32)
    assert same_bits(bert.embed([text])[0], l2_normalize(mean_rows(hidden)))


@pytest.mark.parametrize("name", ["every switch is on", "dense after two modes, normalized"])
def test_a_vector_never_depends_on_the_other_texts(name: str, tmp_path: Path) -> None:
    model = open_model(CASES[name].write(tmp_path / "model"))
    alone = np.concatenate([model.embed([text]) for text in TEXTS])
    assert same_bits(model.embed(TEXTS), alone)
    assert same_bits(model.embed(TEXTS * 50), np.concatenate([alone] * 50))


def test_the_tap_sees_pooling_each_dense_layer_and_the_result(tmp_path: Path) -> None:
    model = open_model(CASES["two dense"].write(tmp_path / "model"))
    seen: dict[str, Floats] = {}
    result = model.embed(["hello"], tap=lambda name, array: seen.update({name: array}))
    last = [name for name in seen if name.startswith("result_embd")]
    dense_layers = ["result_embd_dense-0", "result_embd_dense-1"]
    assert last == ["result_embd_pooled", *dense_layers, "result_embd"]
    assert [seen[name].shape for name in last] == [(1, 32), (1, 48), (1, 8), (1, 8)]
    assert same_bits(seen["result_embd"], result)


def test_a_dense_layer_that_overflows_is_an_error_that_names_it(tmp_path: Path) -> None:
    layer = dense(32, 8, "torch.nn.modules.linear.Identity")
    layer.tensors["linear.weight"][:] = 3e38
    model = open_model(write_sentence_folder(tmp_path / "model", pooling("mean"), layer))
    with pytest.raises(LlmRuntimeError, match="value result_embd_dense"):
        model.embed(["hello"])


# Prompts


@pytest.fixture
def prompted(tmp_path: Path) -> BertModel:
    return open_model(
        write_sentence_folder(tmp_path / "model", pooling("mean"), NORMALIZE, prompts=PROMPTS)
    )


def test_a_prompt_s_tokens_are_part_of_the_text_s(prompted: BertModel) -> None:
    ids = prompted.tokenize(["hello"]).token_ids
    assert ids == [prompted.tokenizer.encode("search the cat: hello")]
    assert prompted.tokenize(["hello"], prompt="").token_ids == [prompted.tokenizer.encode("hello")]


def test_an_unknown_prompt_is_refused_with_the_known_ones(prompted: BertModel) -> None:
    with pytest.raises(InvalidInput, match="'qurey', its prompts are document, empty, passage, qu"):
        prompted.embed(["hello"], prompt_name="qurey")


def test_a_prompt_and_a_name_together_are_refused(prompted: BertModel) -> None:
    with pytest.raises(InvalidInput, match="either prompt or prompt_name"):
        prompted.embed(["hello"], prompt_name="query", prompt="x")


@pytest.mark.parametrize("mode", MODES)
def test_a_text_of_which_the_prompt_leaves_nothing_is_refused(
    mode: PoolingMode, tmp_path: Path
) -> None:
    model = open_model(
        write_sentence_folder(tmp_path / "model", pooling(mode, include_prompt=False))
    )
    # "hell" alone is four tokens, and "hello" is one.
    with pytest.raises(InvalidInput, match="a text of 3 tokens has none beside the 5 of the prom"):
        model.embed(["o"], prompt="hell")


def test_the_engine_puts_the_default_prompt_first_and_counts_it(prompted: BertModel) -> None:
    result = LocalEngine().generate_embeddings(prompted.path, list(TEXTS))
    assert same_bits(np.array(result.embeddings, np.float32), prompted.embed(TEXTS))
    n_tokens = sum(len(ids) for ids in prompted.tokenize(TEXTS).token_ids)
    assert result.usage.prompt_token_count == n_tokens


# The engine


def test_the_engine_s_vectors_are_as_wide_as_the_model_s(tmp_path: Path) -> None:
    path = CASES["every switch is on"].write(tmp_path / "model")
    engine = LocalEngine()
    assert len(engine.generate_embeddings(path, ["hello"]).embeddings[0]) == 6 * 32
    groups = engine.open_embeddings(path, []).groups
    assert [group.shape for group in groups] == [(0, 6 * 32)]


def test_the_limit_of_a_result_counts_the_width_of_a_vector(tmp_path: Path) -> None:
    path = CASES["every switch is on"].write(tmp_path / "model")
    n_texts = 128 * 1024 * 1024 // (6 * 32 * 4) + 1
    with pytest.raises(LlmRuntimeError, match="query result exceeds limit"):
        LocalEngine().generate_embeddings(path, ["a"] * n_texts)


def test_profile_spin_local_takes_the_normalized_mean_whatever_the_folder(tmp_path: Path) -> None:
    modules = [pooling("cls", include_prompt=False), dense(32, 8)]
    folder = write_sentence_folder(tmp_path / "model", *modules, prompts=PROMPTS)
    spin = LocalEngine(profile="spin-local").generate_embeddings(folder, ["the cat"])
    plain = open_model(tiny_bert_folder(tmp_path / "plain"))
    tokens = plain.tokenize(["the cat"]).token_ids
    expected = plain.embed_tokens(tokens, activation=gelu_tanh)
    assert same_bits(np.array(spin.embeddings, np.float32), expected)
    assert spin.usage.prompt_token_count == len(tokens[0])


# Texts that are cut


def test_cut_texts_are_warned_about_once_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = open_model(tiny_bert_folder(tmp_path / "model", max_length=5))
    texts = ["a b c", "a b c d", "a b c d e f", ""]
    with caplog.at_level(logging.WARNING, "refllm"):
        tokenized = model.tokenize(texts)
    assert tokenized.n_cut == 2
    assert [record.getMessage() for record in caplog.records] == [
        "refllm: 2 of 4 texts were cut at 5 tokens; max_tokens sets another limit"
    ]


def test_a_limit_of_the_caller_is_warned_about_too(
    prompted: BertModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "refllm"):
        prompted.embed(["hello world"], max_tokens=8)
    assert "1 of 1 text was cut at 8 tokens" in caplog.text


def test_texts_that_fit_are_not_warned_about(
    prompted: BertModel, caplog: pytest.LogCaptureFixture
) -> None:
    n_tokens = len(prompted.tokenize(["hello"]).token_ids[0])
    with caplog.at_level(logging.WARNING, "refllm"):
        assert prompted.tokenize(["hello"], max_tokens=n_tokens).n_cut == 0
    assert not caplog.records


def test_a_model_without_files_of_sentence_transformers_has_the_two_usual_prompts() -> None:
    sentence = SentenceConfig()
    assert dict(sentence.prompts) == {"query": "", "document": ""}
    assert sentence.default_prompt == ""
