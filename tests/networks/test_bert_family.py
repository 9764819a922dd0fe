"""RoBERTa, DistilBERT and MPNet give the vectors that transformers gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from refllm import oracle
from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.bert import ACTIVATIONS, Bert
from refllm.checkpoints.config import HIDDEN_ACT, bert_config
from refllm.checkpoints.names import canonical_name
from refllm.checkpoints.open import open_weights
from refllm.export.model import check_complete
from refllm.jit.compile import use_threads
from refllm.kernels.attention import (
    attention_over_texts,
    attention_scale,
    biased_attention_over_texts,
    biased_attention_weights,
)
from refllm.kernels.elementwise import gelu_tanh
from refllm.models.load import BertModel, load_path, load_tokenizer
from tests.support.encoder_cases import ACTIVATION_INPUTS, CASES, GGUF_CASES, GGUF_TEXTS, TEXTS
from tests.support.exports import exported
from tests.support.model_files import tiny_bert_gguf
from tests.support.networks import arrays_of, open_bert, same_bits
from tests.support.peer_values import peer_values
from tests.support.tiny_encoders import ENCODERS, N_POSITIONS, encoder_tensors, tiny_encoder_folder

Floats = NDArray[np.float32]

RIGHT = peer_values("encoders")
# Both compute in float32, and add the same numbers in another order: two layers and a mean of up
# to 142 tokens leave a few units of the seventh digit.
ATOL = 1e-6
GGUF_RIGHT = peer_values("bert_gguf")
# llama.cpp takes GELU's tanh approximation from a table in float16.
GGUF_ATOL = 5e-4


def vectors(bert: Bert) -> Floats:
    return bert.embed(TEXTS)


@pytest.mark.parametrize("name", CASES)
def test_a_model_gives_the_vectors_of_transformers(name: str, tmp_path: Path) -> None:
    ours = vectors(open_bert(CASES[name].write(tmp_path)))
    np.testing.assert_allclose(ours[:, :4], RIGHT[name], atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_a_short_text_has_the_bits_of_the_oracle(name: str, tmp_path: Path) -> None:
    path = CASES[name].write(tmp_path)
    bert = open_bert(path)
    arrays = arrays_of(path)
    for text in TEXTS[:2]:
        assert same_bits(bert.embed([text])[0], oracle.bert(bert.config, arrays, text))


def test_a_long_text_of_mpnet_has_the_bits_of_the_oracle(tmp_path: Path) -> None:
    bert = open_bert(tiny_encoder_folder(tmp_path, "mpnet"))
    arrays = encoder_tensors("mpnet")
    assert same_bits(bert.embed(TEXTS[2:])[0], oracle.bert(bert.config, arrays, TEXTS[2]))


def test_the_bound_is_far_below_the_difference_of_two_models() -> None:
    first = np.array(RIGHT["roberta"])
    for other in ("bert", "roberta with relu", "roberta whose padding is 0"):
        assert np.abs(first - RIGHT[other]).max() > 1000 * ATOL


@pytest.mark.parametrize("name", HIDDEN_ACT)
def test_an_activation_is_that_of_transformers(name: str) -> None:
    x = np.array([ACTIVATION_INPUTS], np.float32)
    ours = ACTIVATIONS[HIDDEN_ACT[name]](x)[0]
    np.testing.assert_allclose(ours, RIGHT["activations"][name], rtol=2e-6, atol=2e-7)


def test_aliases_that_differ_in_transformers_differ_here() -> None:
    x = np.array([ACTIVATION_INPUTS], np.float32)
    results = {name: function(x).tobytes() for name, function in ACTIVATIONS.items()}
    assert len(set(results.values())) == len(ACTIVATIONS)


def test_nan_stays_nan_in_every_activation() -> None:
    x = np.array([[np.nan, 1.0]], np.float32)
    for function in ACTIVATIONS.values():
        assert np.isnan(function(x)).tolist() == [[True, False]]


@pytest.mark.parametrize("name", [*sorted(set(RIGHT["all activations"]) - set(HIDDEN_ACT)), "no"])
@pytest.mark.parametrize(("kind", "key"), [("mpnet", "hidden_act"), ("distilbert", "activation")])
def test_an_activation_that_is_not_computed_is_refused_by_name(
    name: str, kind: str, key: str, tmp_path: Path
) -> None:
    folder = tiny_encoder_folder(tmp_path, kind, config={key: name})
    with pytest.raises(
        ModelNotSupported, match=rf"config\.json: {key} = '{name}' is not supported"
    ):
        bert_config(open_weights(folder))


def test_an_activation_that_is_no_name_is_refused(tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path, "bert", config={"hidden_act": ["gelu"]})
    with pytest.raises(ModelNotSupported, match=r"hidden_act = \['gelu'\]"):
        bert_config(open_weights(folder))


def test_the_callers_gelu_replaces_gelu_and_no_other_activation(tmp_path: Path) -> None:
    gelu = open_bert(tiny_encoder_folder(tmp_path / "gelu", "bert"))
    relu = open_bert(tiny_encoder_folder(tmp_path / "relu", "bert", config={"hidden_act": "relu"}))
    tanh = open_bert(
        tiny_encoder_folder(tmp_path / "tanh", "bert", config={"hidden_act": "gelu_new"})
    )
    assert same_bits(gelu.embed(TEXTS, activation=gelu_tanh), vectors(tanh))
    assert not same_bits(gelu.embed(TEXTS, activation=gelu_tanh), vectors(gelu))
    assert same_bits(relu.embed(TEXTS, activation=gelu_tanh), vectors(relu))


@pytest.mark.parametrize(
    ("kind", "n_ctx"),
    [("bert", 160), ("roberta", 158), ("camembert", 156), ("distilbert", 160), ("mpnet", 158)],
)
def test_the_context_is_what_the_table_of_positions_leaves(
    kind: str, n_ctx: int, tmp_path: Path
) -> None:
    bert = open_bert(tiny_encoder_folder(tmp_path, kind))
    assert bert.config.n_ctx == n_ctx
    assert np.isfinite(bert.embed([[5] * n_ctx])).all()
    with pytest.raises(InvalidInput, match=f"{n_ctx + 1} tokens does not fit"):
        bert.embed([[5] * (n_ctx + 1)])


@pytest.mark.parametrize("n_positions", [1, 2])
def test_a_table_without_a_position_for_a_token_is_an_error(
    n_positions: int, tmp_path: Path
) -> None:
    config = {"max_position_embeddings": n_positions}
    folder = tiny_encoder_folder(tmp_path, "roberta", config=config)
    with pytest.raises(LlmRuntimeError, match=r"max_position_embeddings must be greater than 2"):
        bert_config(open_weights(folder))


def test_a_roberta_whose_padding_token_is_null_is_an_error(tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path, "roberta")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 1', '"pad_token_id": null'))
    with pytest.raises(LlmRuntimeError, match="pad_token_id must be a number"):
        bert_config(open_weights(folder))


def test_a_roberta_may_have_no_token_types(tmp_path: Path) -> None:
    tensors = {"token_types.weight": np.zeros((1, 32), np.float32)}
    with_zeros = open_bert(tiny_encoder_folder(tmp_path / "zeros", "roberta", tensors=tensors))
    without = open_bert(
        tiny_encoder_folder(
            tmp_path / "without",
            "roberta",
            tensors={"token_types.weight": None},
            config={"type_vocab_size": 0},
        )
    )
    assert same_bits(vectors(without), vectors(with_zeros))


def test_token_types_that_the_config_promises_and_the_file_lacks_are_named(tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path, "roberta", tensors={"token_types.weight": None})
    with pytest.raises(LlmRuntimeError, match=r"token_types\.weight is missing"):
        open_bert(folder)


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("kind", ENCODERS)
def test_texts_are_the_same_alone_and_together_and_on_any_number_of_threads(
    kind: str, tmp_path: Path
) -> None:
    bert = open_bert(tiny_encoder_folder(tmp_path, kind))
    together = vectors(bert)
    assert same_bits(together, np.concatenate([bert.embed([text]) for text in TEXTS]))
    use_threads(1)
    assert same_bits(together, vectors(bert))


# Attention with a bias


def random_qkv(n_tokens: int, n_heads: int, head_dim: int) -> Floats:
    random = np.random.default_rng(3)
    return random.standard_normal((n_tokens, 3 * n_heads, head_dim)).astype(np.float32)


def test_an_attention_bias_of_zero_changes_no_bit() -> None:
    qkv, starts = random_qkv(41, 3, 8), np.array([0, 7, 8, 41])
    bias = np.zeros((3, 2 * 33 - 1), np.float32)
    assert same_bits(
        biased_attention_over_texts(qkv, starts, bias), attention_over_texts(qkv, starts)
    )


def test_a_bias_is_added_to_the_scaled_score_of_its_distance() -> None:
    qkv = random_qkv(9, 2, 4)
    bias = np.random.default_rng(4).standard_normal((2, 17)).astype(np.float32)  # [H, 2·S − 1]
    q, k, v = (part.astype(np.float64) for part in np.split(qkv, 3, axis=1))  # [S, H, E]
    scores = np.einsum("the,she->hts", q, k) / 2
    for h in range(2):
        for t in range(9):
            for s in range(9):
                scores[h, t, s] += bias[h, 8 + s - t]
    weights = oracle.softmax(scores)  # [H, S, S]
    ours = biased_attention_weights(qkv, attention_scale(4), bias)
    np.testing.assert_allclose(ours, weights, atol=1e-6)
    attended = biased_attention_over_texts(qkv, np.array([0, 9]), bias)
    np.testing.assert_allclose(attended, np.einsum("hts,she->the", weights, v), atol=1e-6)


def test_the_tap_sees_mpnets_weights_with_their_bias(tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path / "a", "mpnet")
    flat = tiny_encoder_folder(
        tmp_path / "b", "mpnet", tensors={"attn_rel_b.weight": np.ones((32, 4), np.float32)}
    )
    seen: list[Floats] = []
    for path in (folder, flat):
        open_bert(path).embed(
            [TEXTS[0]],
            tap=lambda name, array: seen.append(array) if name == "kq_soft_max-0" else None,
        )
    with_bias, without = seen
    assert with_bias.shape == without.shape == (4, 5, 5)
    np.testing.assert_allclose(with_bias.sum(axis=-1), 1.0, atol=1e-6)
    assert np.abs(with_bias - without).max() > 0.01


# GGUF: the architecture "bert" as llama.cpp's converter writes it


def gguf_of(kind: str, path: Path, **changes: Floats | None) -> Path:
    """Write what convert_hf_to_gguf.py makes of a model of `ENCODERS`."""
    tensors = encoder_tensors(kind)
    config = ENCODERS[kind].config
    first = 0
    if kind not in ("bert", "distilbert"):
        first = int(str(config["pad_token_id"])) + 1
        tensors["position_embd.weight"] = tensors["position_embd.weight"][first:]
    if "token_types.weight" not in tensors:
        changes["token_types.weight"] = None
    return tiny_bert_gguf(
        path,
        metadata={
            "bert.context_length": N_POSITIONS - first,
            "bert.attention.layer_norm_epsilon": config.get("layer_norm_eps", 1e-12),
            "tokenizer.ggml.token_type_count": config.get("type_vocab_size", 1),
        },
        tensors={**tensors, **changes},
    )


WITHOUT_PADDING = (0, 2)  # of TEXTS: llama.cpp counts the position of a padding token, too


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert"])
def test_a_gguf_as_llama_cpp_converts_it_gives_the_vectors_of_transformers(
    kind: str, tmp_path: Path
) -> None:
    bert = open_bert(gguf_of(kind, tmp_path / "model.gguf"))
    for i in WITHOUT_PADDING:
        ours = bert.embed([TEXTS[i]])[0]
        np.testing.assert_allclose(ours[:4], RIGHT[kind][i], atol=ATOL)


@pytest.mark.parametrize("name", GGUF_CASES)
def test_a_gguf_gives_nearly_the_vectors_of_llama_cpp(name: str, tmp_path: Path) -> None:
    path = GGUF_CASES[name].write(tmp_path / "model.gguf")
    token_ids = [load_tokenizer(path).encode(text) for text in GGUF_TEXTS]
    ours = open_bert(path).embed(token_ids)
    np.testing.assert_allclose(ours[:, :4], GGUF_RIGHT[name], atol=GGUF_ATOL)


def test_the_llama_cpp_bound_is_far_below_the_difference_of_two_models() -> None:
    with_types, without = (np.array(GGUF_RIGHT[name]) for name in ("plain", "no token types"))
    assert np.abs(with_types - without).max() > 100 * GGUF_ATOL


def test_a_table_of_one_row_gives_the_same_bits_as_one_of_two(tmp_path: Path) -> None:
    one, two = (
        open_bert(GGUF_CASES[name].write(tmp_path / f"{name}.gguf"))
        for name in ("one token type", "plain")
    )
    assert same_bits(one.embed(TEXTS[:2]), two.embed(TEXTS[:2]))


def test_a_count_of_token_types_that_the_table_has_not_is_an_error(tmp_path: Path) -> None:
    path = tiny_bert_gguf(tmp_path / "a.gguf", metadata={"tokenizer.ggml.token_type_count": 1})
    with pytest.raises(LlmRuntimeError, match=r"token_types\.weight has the shape \[2, 32\]"):
        open_bert(path)


def test_queries_keys_and_values_in_one_tensor_give_the_same_bits_as_in_three(
    tmp_path: Path,
) -> None:
    fused, apart = (
        GGUF_CASES[name].write(tmp_path / f"{name}.gguf")
        for name in ("one tensor for queries, keys and values", "plain")
    )
    assert same_bits(open_bert(fused).embed(TEXTS[:2]), open_bert(apart).embed(TEXTS[:2]))
    again = exported(fused, tmp_path, "gguf")
    assert open_weights(again).tensors.keys() == open_weights(fused).tensors.keys()


# Which family a folder is of


@pytest.mark.parametrize(
    ("named", "family"),
    [
        ("BertModel", "bert"),
        ("BertForMaskedLM", "bert"),
        ("RobertaModel", "roberta"),
        ("XLMRobertaForMaskedLM", "roberta"),
        ("CamembertForTokenClassification", "roberta"),
        ("DistilBertForSequenceClassification", "distilbert"),
        ("MPNetModel", "mpnet"),
    ],
)
def test_the_class_names_the_family_where_the_model_type_does_not(
    named: str, family: str, tmp_path: Path
) -> None:
    folder = tiny_encoder_folder(
        tmp_path, family, config={"model_type": None, "architectures": [named]}
    )
    weights = open_weights(folder)
    assert (weights.architecture, weights.family) == ("bert", family)


@pytest.mark.parametrize("model_type", ["electra", "deberta-v2", "nomic_bert", "xlm-roberta-xl"])
def test_another_encoder_is_refused_by_name(model_type: str, tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path, "roberta", config={"model_type": model_type})
    with pytest.raises(
        ModelNotSupported,
        match=f"model_type is '{model_type}'; supported are llama, bert, .*, mpnet",
    ):
        open_weights(folder)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_tensor_of_a_family_has_its_name_with_a_prefix_and_without(
    kind: str, tmp_path: Path
) -> None:
    plain = open_weights(tiny_encoder_folder(tmp_path / "a", kind))
    prefixed = open_weights(tiny_encoder_folder(tmp_path / "b", kind, prefix=ENCODERS[kind].prefix))
    assert plain.tensors.keys() == prefixed.tensors.keys() == encoder_tensors(kind).keys()
    assert canonical_name(plain.family, "lm_head.dense.weight") is None


def test_a_folder_with_another_familys_prefix_lacks_its_tensors(tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path, "roberta", prefix="bert.")
    with pytest.raises(LlmRuntimeError, match=r"token_embd\.weight is missing"):
        open_bert(folder)


# A whole folder


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_folder_with_a_tokenizer_json_is_a_model(kind: str, tmp_path: Path) -> None:
    folder = tiny_encoder_folder(tmp_path, kind)
    words = {"[PAD]": 0, "[UNK]": 1, "<s>": 2, "</s>": 3, "hello": 4, "the": 5, "cat": 6}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>", "[UNK]", "[PAD]"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    model = load_path(folder)
    assert isinstance(model, BertModel)
    text = "Hello, the cat"
    [token_ids] = model.tokenize([text]).token_ids
    assert token_ids == tokenizer.encode(text).ids == [2, 4, 1, 5, 6, 3]
    assert same_bits(model.embed([text]), open_bert(folder).embed([token_ids]))


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("roberta", "blk.1.ffn_up.bias", "encoder.layer.1.intermediate.dense.bias"),
        ("distilbert", "blk.1.ffn_up.bias", "transformer.layer.1.ffn.lin1.bias"),
        ("mpnet", "attn_rel_b.weight", "encoder.relative_attention_bias.weight"),
        ("mpnet", "blk.0.attn_q.weight", "encoder.layer.0.attention.attn.q.weight"),
        ("roberta", "token_types.weight", "embeddings.token_type_embeddings.weight"),
    ],
)
def test_a_missing_tensor_is_named_as_its_family_names_it(
    kind: str, ours: str, theirs: str, tmp_path: Path
) -> None:
    check_complete(open_weights(tiny_encoder_folder(tmp_path / "whole", kind)))
    lacking = open_weights(tiny_encoder_folder(tmp_path / "part", kind, tensors={ours: None}))
    with pytest.raises(LlmRuntimeError, match=f"lacks {theirs}, which"):
        check_complete(lacking)
