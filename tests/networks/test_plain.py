"""refllm.plain: the networks as a textbook prints them agree with the goldens and the oracle."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

import refllm
from refllm import oracle
from refllm.checkpoints.open import open_weights
from refllm.models.bundled import ROOT
from refllm.models.load import BertModel, LlamaModel, load_path
from refllm.plain import bert, llama
from tests.conftest import PROJECT
from tests.support.golden_networks import (
    LOGITS_BY_NAME,
    OF_TINY_EMBED,
    VECTOR_TOLERANCE,
    error_in_bounds,
    vectors_of,
)
from tests.support.model_files import tiny_bert_folder, tiny_llama_gguf
from tools.golden_logits import path_of
from tools.plain_bert import bert_of_gguf

Array: TypeAlias = NDArray[Any]
Case: TypeAlias = Mapping[str, Any]
Plain: TypeAlias = tuple[LlamaModel, dict[str, Array]]
PlainBert: TypeAlias = tuple[BertModel, dict[str, Array]]

EXACT = [case for case in LOGITS_BY_NAME.values() if case["input"]["numerics"] == "exact"]
WITH_TEXTS = [case for case in OF_TINY_EMBED if case["input"]["texts"]]
TINY_EMBED = ROOT / "bert" / "tiny-embed.gguf"
ROUNDING = 1e-10
"""Of float64, in the sums of these networks: what two orders of adding can be apart."""


def tensors_of(path: Path) -> dict[str, Array]:
    """The weights at `path`, float64."""
    tensors = open_weights(path).tensors
    return {name: tensor.array().astype(np.float64) for name, tensor in tensors.items()}


def llama_at(path: Path) -> Plain:
    model = load_path(path)
    assert isinstance(model, LlamaModel)
    return model, tensors_of(path)


def bert_at(path: Path) -> PlainBert:
    model = load_path(path)
    assert isinstance(model, BertModel)
    return model, tensors_of(path)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plain]:
    folder = tmp_path_factory.mktemp("suite-models")

    return cache(lambda name: llama_at(path_of(name, folder)))


@pytest.fixture(scope="module")
def tiny_chat(opened: Callable[[str], Plain]) -> Plain:
    return opened("tiny-chat")


# --- The llama -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case["id"])
def test_the_plain_llama_is_within_the_bounds_of_the_golden_logits(
    case: Case, opened: Callable[[str], Plain]
) -> None:
    model, tensors = opened(case["input"]["model"])
    got = llama.forward(model.config, tensors, case["input"]["token_ids"])
    assert got.dtype == np.float64
    assert error_in_bounds(got, case) <= 1


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_plain_llama_is_the_oracle_in_float64(tied: bool, tmp_path: Path) -> None:
    model, tensors = llama_at(tiny_llama_gguf(tmp_path / "tiny.gguf", tied=tied))
    token_ids = [1, *range(10, 40)]
    exact = oracle.llama(model.config, tensors, token_ids)
    got = llama.forward(model.config, tensors, token_ids)
    assert np.abs(got - exact).max() < ROUNDING * np.abs(exact).max()


def test_stories260k_as_a_plain_llama_is_the_oracle_in_float64(data_dir: Path) -> None:
    model, tensors = llama_at(data_dir / "stories260K" / "stories260K.gguf")
    token_ids = model.tokenizer.encode("Once upon a time, there was a little girl named Lily.")
    exact = oracle.llama(model.config, tensors, token_ids)
    got = llama.forward(model.config, tensors, token_ids)
    assert np.abs(got - exact).max() < ROUNDING * np.abs(exact).max()


def test_weights_of_another_dtype_are_computed_in_float64(tiny_chat: Plain) -> None:
    model, tensors = tiny_chat
    narrow = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    wide = llama.forward(model.config, tensors, [1, 2, 3])
    assert np.array_equal(llama.forward(model.config, narrow, [1, 2, 3]), wide)


def test_the_plain_llama_generates_refllm_s_text(tiny_chat: Plain) -> None:
    model, tensors = tiny_chat
    prompt = model.tokenizer.encode("Once upon a time")
    greedy = refllm.InferencingParams(max_tokens=12, temperature=0, repeat_penalty=1)
    story = refllm.infer_with_options("tiny-chat", "Once upon a time", greedy).text
    tokens = llama.generate(model.config, tensors, prompt, max_tokens=12)
    assert len(tokens) == 12
    assert model.tokenizer.decode(prompt + tokens) == f"Once upon a time{story}"


def test_a_text_of_the_plain_llama_ends_with_the_end_token(tiny_chat: Plain) -> None:
    model, tensors = tiny_chat
    first, second = llama.generate(model.config, tensors, [1], max_tokens=2)
    assert llama.generate(model.config, tensors, [1], max_tokens=2, end_ids={first}) == [first]
    assert first != second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_factors": (2.0,) * 16}, "RoPE stretched"),
        ({"rope_linear_scale": 4.0}, "RoPE stretched"),
    ],
)
def test_a_llama_whose_rope_is_stretched_is_refused(
    change: Mapping[str, Any], message: str, tiny_chat: Plain
) -> None:
    model, tensors = tiny_chat
    with pytest.raises(ValueError, match=f"the model has {message}.*use refllm.llama"):
        llama.forward(dataclasses.replace(model.config, **change), tensors, [1])


@pytest.mark.parametrize("name", ["blk.1.attn_q.bias", "blk.0.attn_qkv.weight"])
def test_a_llama_with_a_tensor_that_would_be_left_out_is_refused(
    name: str, tiny_chat: Plain
) -> None:
    model, tensors = tiny_chat
    with pytest.raises(ValueError, match=f"the model has {name}"):
        llama.forward(model.config, {**tensors, name: np.zeros(3)}, [1])


# --- BERT ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_embed() -> PlainBert:
    return bert_at(TINY_EMBED)


@pytest.mark.parametrize("case", WITH_TEXTS, ids=lambda case: case["id"])
def test_the_plain_bert_is_within_the_bounds_of_the_golden_embeddings(
    case: Case, tiny_embed: PlainBert
) -> None:
    model, tensors = tiny_embed
    asked = case["input"]
    texts = model.tokenize(asked["texts"], max_tokens=asked.get("max_tokens")).token_ids
    got = np.array([bert.forward(model.config, tensors, ids) for ids in texts])  # [N, D]
    assert case["tolerance"]["absolute"] == VECTOR_TOLERANCE
    assert np.abs(got - vectors_of(case)).max() <= VECTOR_TOLERANCE


def test_the_plain_bert_agrees_with_the_program_that_made_the_goldens(
    tiny_embed: PlainBert,
) -> None:
    model, tensors = tiny_embed
    peer = bert_of_gguf(TINY_EMBED)
    texts = [peer.token_ids(text) for case in WITH_TEXTS[:6] for text in case["input"]["texts"]]
    padded = peer.vectors(texts)  # [N, D]
    alone = np.array([bert.forward(model.config, tensors, text) for text in texts])  # [N, D]
    assert np.abs(alone - padded).max() < ROUNDING


@pytest.mark.network
def test_minilm_as_a_plain_bert_is_within_the_bounds_of_sentence_transformers(
    minilm_dir: Path,
) -> None:
    document = json.loads((PROJECT / "golden/embeddings/all-minilm-l6-v2.json").read_text())
    model, tensors = bert_at(minilm_dir)
    answers = [answer for text in document["texts"] for answer in text["embeddings"]]
    for answer in answers[:8]:
        got = bert.forward(model.config, tensors, answer["token_ids"])
        expected = np.array([float.fromhex(x) for x in answer["vector"]])
        assert np.abs(got - expected).max() <= VECTOR_TOLERANCE


def test_a_random_plain_bert_is_the_oracle_in_float64(tmp_path: Path) -> None:
    model, tensors = bert_at(tiny_bert_folder(tmp_path / "tiny"))
    token_ids = [2, 7, 5, 9, 3]
    exact = oracle.bert(model.config, tensors, token_ids)
    got = bert.forward(model.config, tensors, token_ids)
    assert np.abs(got - exact).max() < ROUNDING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu_tanh"}, "the activation gelu_tanh"),
        ({"padding_id": 1}, "positions as RoBERTa"),
        ({"relative_attention": True}, "positions as RoBERTa or MPNet"),
        ({"n_token_types": 0}, "no token types"),
    ],
)
def test_a_descendant_of_bert_is_refused(
    change: Mapping[str, Any],
    message: str,
    tiny_embed: PlainBert,
) -> None:
    model, tensors = tiny_embed
    with pytest.raises(ValueError, match=f"the model has {message}.*use refllm.bert"):
        bert.forward(dataclasses.replace(model.config, **change), tensors, [1])


# --- The pages -----------------------------------------------------------------------------------


def test_the_formulas_hold_for_values_that_overflow() -> None:
    far = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    assert llama.silu(far).tolist() == [0, 0, 0, 800, 1e4]
    assert bert.gelu(far).tolist() == [0, 0, 0, 800, 1e4]
    assert llama.softmax(far).tolist() == bert.softmax(far).tolist() == [0, 0, 0, 0, 1]
    assert bert.normalize(np.zeros(3)).tolist() == [0, 0, 0]


def imported_at_run_time(module: ModuleType) -> Sequence[str]:
    """The modules that a module's file imports, what it imports for type checking left out."""
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    outside = [node for node in tree.body if not isinstance(node, ast.If)]
    names = []
    for node in (each for part in outside for each in ast.walk(part)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
    return names


@pytest.mark.parametrize("module", [llama, bert])
def test_a_plain_network_imports_nothing_of_refllm(module: ModuleType) -> None:
    names = imported_at_run_time(module)
    assert "numpy" in names
    assert [name for name in names if name.startswith("refllm")] == []


@pytest.mark.parametrize("module", [llama, bert])
def test_the_example_of_a_plain_network_prints_what_it_shows(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0
