"""Every encoder of BERT's family is exported as what it is, or refused by what it has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from refllm.api import ModelNotSupported
from refllm.checkpoints.open import open_weights
from refllm.export import Layout, quantize
from refllm.models.load import BertModel, load_path
from tests.support.encoder_cases import CASES
from tests.support.exported_models import ENCODER_TEXTS, MODELS
from tests.support.exports import exported, keys_of, names_in, read
from tests.support.model_files import tiny_bert_folder, tiny_bert_gguf
from tests.support.tiny_bert import tiny_bert_tensors
from tests.support.tiny_encoders import ENCODERS
from tests.support.token_cases import BERT_WORDS, FOLDERS, write_folder

Floats = NDArray[np.float32]
KINDS = ["bert, cased, by cls", "distilbert", "roberta", "xlm-roberta", "camembert", "mpnet"]
IN_GGUF = KINDS[:-1]
# The keys of an RoBERTa's config.json and of a DistilBERT's are not those of a BERT's.
OF_DISTILBERT = {"dim", "hidden_dim", "n_layers", "n_heads", "activation"}
OF_OTHERS = {"hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"}


def vectors(path: Path) -> bytes:
    model = load_path(path)
    assert isinstance(model, BertModel)
    return model.embed(list(ENCODER_TEXTS)).tobytes()


def source_of(name: str, folder: Path) -> Path:
    (folder / "source").mkdir()
    return MODELS[name].make(folder / "source")


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_is_the_same_model_as_a_folder(name: str, tmp_path: Path) -> None:
    source = source_of(name, tmp_path)
    made = exported(source, tmp_path, "hf")
    assert vectors(made) == vectors(source)
    assert open_weights(made).family == open_weights(source).family
    assert read(made / "config.json")["model_type"] == read(source / "config.json")["model_type"]
    config = read(made / "config.json")
    mine, others = OF_OTHERS, OF_DISTILBERT
    if name == "distilbert":
        mine, others = others, mine
    assert mine <= config.keys()
    assert not others & config.keys()


@pytest.mark.parametrize("name", CASES)
def test_names_and_keys_of_every_spelling_are_written_in_one(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.write(tmp_path / "source")
    n_vocab = 60
    words = [*BERT_WORDS, *(f"more{i}" for i in range(n_vocab - len(BERT_WORDS)))]
    write_folder(source, {"vocab.txt": "\n".join(words) + "\n"})
    tokenizer = {"tokenizer_class": "BertTokenizer"}
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    made = exported(source, tmp_path, "hf")
    assert vectors(made) == vectors(source)
    stored = load_file(made / "model.safetensors")
    prefix = ENCODERS[case.kind].prefix
    assert not [key for key in stored if key.startswith(prefix) or key.endswith(("gamma", "beta"))]


@pytest.mark.parametrize("name", IN_GGUF)
def test_a_folder_is_the_same_model_as_a_gguf(name: str, tmp_path: Path) -> None:
    source = source_of(name, tmp_path)
    assert vectors(exported(source, tmp_path, "gguf")) == vectors(source)


@pytest.mark.parametrize("name", IN_GGUF)
def test_a_gguf_of_a_family_is_the_same_model_as_a_folder(name: str, tmp_path: Path) -> None:
    gguf = exported(source_of(name, tmp_path), tmp_path, "gguf")
    assert vectors(exported(gguf, tmp_path / "again", "hf")) == vectors(gguf)


@pytest.mark.parametrize(("name", "padding_id"), [("roberta", 1), ("camembert", 1)])
def test_positions_in_a_gguf_begin_behind_the_padding_token(
    name: str, padding_id: int, tmp_path: Path
) -> None:
    source = source_of(name, tmp_path)
    made = exported(source, tmp_path, "gguf")
    table = load_file(source / "model.safetensors")["embeddings.position_embeddings.weight"]
    position_embd = open_weights(made).tensors["position_embd.weight"].array()
    assert np.array_equal(position_embd, table[padding_id + 1 :])
    assert keys_of(made)["bert.context_length"] == ([4], len(table) - padding_id - 1)


def test_a_gguf_of_a_model_without_token_types_counts_one(tmp_path: Path) -> None:
    made = exported(source_of("distilbert", tmp_path), tmp_path, "gguf")
    assert keys_of(made)["tokenizer.ggml.token_type_count"] == ([4], 1)
    assert "token_types.weight" not in open_weights(made).tensors


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mpnet", "a relative attention bias, as MPNet has it"),
        ("bert with gelu_new", "the activation gelu_tanh"),
        ("roberta with relu", "the activation relu"),
    ],
)
def test_an_encoder_option_that_llama_cpp_would_ignore_is_refused(
    name: str, what: str, tmp_path: Path
) -> None:
    source = source_of(name, tmp_path)
    with pytest.raises(ModelNotSupported, match=f"has {what}, which llama.cpp does not compute"):
        exported(source, tmp_path, "gguf")
    with pytest.raises(ModelNotSupported, match=f"has {what}"):
        quantize(source, tmp_path / "q.gguf", type_name="Q8_0")


@pytest.mark.parametrize("name", KINDS[1:])
def test_spin_s_layout_refuses_another_family(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match=r"an encoder of the kind .*, which Spin's engine"):
        exported(source_of(name, tmp_path), tmp_path, "spin")


def test_spin_s_layout_refuses_another_activation(tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "relu", config={"hidden_act": "relu"})
    with pytest.raises(ModelNotSupported, match="the activation relu"):
        exported(folder, tmp_path, "spin")


@pytest.mark.parametrize("layout", ["hf", "spin"])
def test_a_bert_without_token_types_has_a_table_of_zeros_in_a_folder(
    layout: Layout, tmp_path: Path
) -> None:
    path = tiny_bert_gguf(tmp_path / "model.gguf", tensors={"token_types.weight": None})
    made = exported(path, tmp_path, layout)
    table = load_file(made / "model.safetensors")["embeddings.token_type_embeddings.weight"]
    assert table.shape == (read(made / "config.json")["type_vocab_size"], 32)
    assert not table.any()
    assert vectors(made) == vectors(path)


def test_one_tensor_for_queries_keys_and_values_becomes_three(tmp_path: Path) -> None:
    arrays = tiny_bert_tensors(n_vocab=1)
    fused: dict[str, np.ndarray | None] = {}
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [f"blk.{layer}.attn_{part}.{kind}" for part in "qkv"]
            fused[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate([arrays[p] for p in parts])
            fused |= dict.fromkeys(parts)
    path = tiny_bert_gguf(tmp_path / "model.gguf", tensors=fused)
    assert vectors(exported(path, tmp_path, "hf")) == vectors(path)


@pytest.mark.parametrize("layout", ["hf", "spin", "gguf"])
def test_a_tensor_that_no_network_uses_is_refused(layout: Layout, tmp_path: Path) -> None:
    source = tiny_bert_folder(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "encoder.adapter.weight": np.ones((2, 2), np.float32)},
              source / "model.safetensors")  # fmt: skip
    with pytest.raises(ModelNotSupported, match=r"encoder\.adapter\.weight"):
        exported(source, tmp_path, layout)
    assert not (tmp_path / "exported").exists() or not names_in(tmp_path / "exported")


def test_only_models_without_token_types_are_given_none_by_transformers(tmp_path: Path) -> None:
    for name in KINDS:
        (tmp_path / name).mkdir()
        made = exported(source_of(name, tmp_path / name), tmp_path / name, "hf")
        inputs = read(made / "tokenizer_config.json")["model_input_names"]
        assert ("token_type_ids" in inputs) == name.startswith("bert")


def test_the_pipeline_of_a_cased_vocab_txt_is_in_tokenizer_json(tmp_path: Path) -> None:
    made = exported(source_of("bert, cased, by cls", tmp_path), tmp_path, "hf")
    assert read(made / "tokenizer.json")["normalizer"]["lowercase"] is False
    assert "vocab.txt" not in names_in(made)
    assert FOLDERS["bert: vocab.txt, cased"].keys() - {"config.json"} - {*names_in(made)} == {
        "vocab.txt"
    }


@pytest.mark.parametrize(
    ("named", "model_type", "written"),
    [
        ("XLMRobertaForMaskedLM", "xlm-roberta", "XLMRobertaModel"),
        ("CamembertModel", "camembert", "CamembertModel"),
        ("RobertaForSequenceClassification", "roberta", "RobertaModel"),
    ],
)
def test_a_class_alone_names_the_kind_of_model(
    named: str, model_type: str, written: str, tmp_path: Path
) -> None:
    source = source_of("roberta", tmp_path)
    config = read(source / "config.json") | {"model_type": None, "architectures": [named]}
    (source / "config.json").write_text(json.dumps(config), "utf-8")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    made = read(exported(source, tmp_path, "hf") / "config.json")
    assert (made["model_type"], made["architectures"]) == (model_type, [written])


def test_a_bert_names_no_bos(tmp_path: Path) -> None:
    source = exported(source_of("bert, lower-cased", tmp_path), tmp_path, "gguf")
    assert keys_of(source)["tokenizer.ggml.bos_token_id"] == ([4], 2)
    config = read(exported(source, tmp_path / "again", "hf") / "tokenizer_config.json")
    assert config["cls_token"] == "[CLS]"
    assert not {"bos_token", "eos_token"} & config.keys()
