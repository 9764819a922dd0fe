"""Folders for transformers and for Spin: names, order, words, places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from refllm.api import ModelNotSupported
from refllm.checkpoints.chat_template import chat_template_of
from refllm.checkpoints.names import canonical_name, hugging_face_name
from refllm.checkpoints.open import open_weights
from refllm.export import Layout, export
from refllm.models.find import find_embedding_model, find_inferencing_model
from tests.support.exports import (
    LAYOUTS,
    LLAMAS,
    exported,
    names_in,
    read,
)
from tests.support.model_files import (
    GgufTensor,
    hf_bert_name,
    hf_llama_name,
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_bert_tensors,
    tiny_llama_folder,
    tiny_llama_gguf,
    tiny_llama_tensors,
)
from tests.support.networks import same_bits


class TestHf:
    def test_a_llama_has_the_tensors_of_the_folder_of_the_same_model(self, tmp_path: Path) -> None:
        made = exported(tiny_llama_gguf(tmp_path / "tiny.gguf", biases=False), tmp_path, "hf")
        expected = load_file(tiny_llama_folder(tmp_path / "expected") / "model.safetensors")
        got = load_file(made / "model.safetensors")
        assert got.keys() == expected.keys()
        assert all(same_bits(got[name], expected[name]) for name in expected)

    def test_biases_are_half_split_too_and_complete(self, tmp_path: Path) -> None:
        made = exported(tiny_llama_gguf(tmp_path / "tiny.gguf", biases=True), tmp_path, "hf")
        source = tiny_llama_folder(tmp_path / "expected", biases=True)
        expected = load_file(source / "model.safetensors")
        got = load_file(made / "model.safetensors")
        added = {f"model.layers.{i}.self_attn.o_proj.bias" for i in range(2)}
        assert got.keys() - expected.keys() == added
        assert all(same_bits(got[name], expected[name]) for name in expected)
        assert not any(got[name].any() for name in added)

    def test_a_llama_has_the_config_of_the_folder_of_the_same_model(self, tmp_path: Path) -> None:
        made = exported(tiny_llama_gguf(tmp_path / "tiny.gguf"), tmp_path, "hf")
        expected = read(tiny_llama_folder(tmp_path / "expected") / "config.json")
        config = read(made / "config.json")
        assert config.pop("rms_norm_eps") == np.float32(expected.pop("rms_norm_eps"))
        assert {key: config[key] for key in expected} == expected

    def test_a_bert_has_the_config_and_tensors_of_the_folder_of_the_same_model(
        self, tmp_path: Path
    ) -> None:
        made = exported(tiny_bert_gguf(tmp_path / "tiny.gguf"), tmp_path, "hf")
        source = tiny_bert_folder(tmp_path / "expected")
        got, expected = (load_file(folder / "model.safetensors") for folder in (made, source))
        assert expected.keys() - got.keys() == {"embeddings.position_ids"}
        assert all(same_bits(got[name], expected[name]) for name in got)
        config, message = read(made / "config.json"), read(source / "config.json")
        assert config.pop("layer_norm_eps") == pytest.approx(message.pop("layer_norm_eps"))
        assert {key: config.get(key) for key in message if key != "pad_token_id"} == {
            key: value for key, value in message.items() if key != "pad_token_id"
        }

    @pytest.mark.parametrize(
        ("type_name", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")]
    )
    def test_all_tensors_have_the_type_that_was_asked_for(
        self, type_name: str, dtype: str, tmp_path: Path
    ) -> None:
        made = exported(tiny_llama_folder(tmp_path / "source"), tmp_path, "hf", type_name)
        stored = open_weights(made).tensors.values()
        assert {tensor.format.name for tensor in stored} == {type_name}
        assert read(made / "config.json")["torch_dtype"] == dtype

    def test_stale_and_foreign_keys_of_config_json_are_not_copied(self, tmp_path: Path) -> None:
        message = {"pretraining_tp": 1, "vocab_size": 7, "_name_or_path": "elsewhere"}
        source = tiny_llama_folder(tmp_path / "source", config=message)
        made = read(exported(source, tmp_path, "hf") / "config.json")
        assert made["vocab_size"] == len(
            load_file(source / "model.safetensors")["model.embed_tokens.weight"]
        )
        assert not {"pretraining_tp", "_name_or_path"} & made.keys()

    def test_the_ends_of_a_generation_that_were_found_are_written(self, tmp_path: Path) -> None:
        source = tiny_llama_folder(tmp_path / "source", config={"eos_token_id": 2})
        (source / "generation_config.json").write_text('{"eos_token_id": [2, 5], "top_k": 7}')
        made = exported(source, tmp_path, "hf")
        generation = read(made / "generation_config.json")
        assert (generation["eos_token_id"], generation["top_k"]) == ([2, 5], 7)
        assert read(made / "config.json")["eos_token_id"] == [2, 5]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_chat_template_comes_along(self, layout: Layout, tmp_path: Path) -> None:
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        metadata = {"tokenizer.chat_template": template}
        source = tiny_llama_gguf(tmp_path / "source.gguf", metadata=metadata)
        made = exported(exported(source, tmp_path, "hf"), tmp_path / "2", layout)
        assert chat_template_of(open_weights(made)) == template

    @pytest.mark.parametrize(
        ("metadata", "tensors", "message"),
        [
            (
                {},
                {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)},
                "not Llama 3's scaling",
            ),
            ({"llama.rope.dimension_count": 4}, {}, "4 of a head's 8 elements"),
            ({}, {"blk.0.attn_sinks.weight": np.array([1], np.float32)}, "attn_sinks"),
        ],
    )
    def test_a_model_that_config_json_cannot_describe_is_refused(
        self,
        metadata: Mapping[str, object],
        tensors: Mapping[str, GgufTensor],
        message: str,
        tmp_path: Path,
    ) -> None:
        source = tiny_llama_gguf(tmp_path / "source.gguf", metadata=metadata, tensors=tensors)
        with pytest.raises(ModelNotSupported, match=message):
            exported(source, tmp_path, "hf")

    @pytest.mark.parametrize("name", tiny_llama_tensors(n_vocab=8, biases=True))
    def test_a_llama_s_tensor_has_hugging_face_s_name(self, name: str) -> None:
        assert hugging_face_name("llama", name) == hf_llama_name(name)
        assert canonical_name("llama", hugging_face_name("llama", name)) == name

    @pytest.mark.parametrize("name", tiny_bert_tensors(n_vocab=8))
    def test_a_bert_s_tensor_has_hugging_face_s_name(self, name: str) -> None:
        assert hugging_face_name("bert", name) == hf_bert_name(name)
        assert canonical_name("bert", hugging_face_name("bert", name)) == name


class TestSpin:
    def test_a_llama_has_an_index_that_names_the_file_of_every_tensor(self, tmp_path: Path) -> None:
        made = exported(tiny_llama_gguf(tmp_path / "source.gguf"), tmp_path, "spin")
        index = read(made / "model.safetensors.index.json")
        [shard] = set(index["weight_map"].values())
        tensors = load_file(made / shard)
        assert index["weight_map"].keys() == tensors.keys()
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
        assert not (made / "model.safetensors").exists()

    def test_models_are_found_by_their_names(self, tmp_path: Path) -> None:
        project = tmp_path / "project"
        root = project / ".spin" / "ai-models"
        llama = tiny_llama_gguf(tmp_path / "source.gguf")
        bert = tiny_bert_gguf(tmp_path / "bert.gguf")
        export(llama, to=project, name="chat", layout="spin")
        export(bert, to=project, name="embed", layout="spin")
        assert find_inferencing_model("chat", [root]) == root / "llama" / "chat"
        assert find_embedding_model("embed", [root]) == root / "embed"
        assert {"model.safetensors", "tokenizer.json"} <= set(names_in(root / "embed"))

    def test_a_tied_llama_gets_an_output_of_its_own(self, tmp_path: Path) -> None:
        made = exported(tiny_llama_gguf(tmp_path / "source.gguf", tied=True), tmp_path, "spin")
        assert read(made / "config.json")["tie_word_embeddings"] is False
        tensors = load_file(made / "model-00001-of-00001.safetensors")
        assert same_bits(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])

    @pytest.mark.parametrize("name", ["biases", "linear", "wide heads"])
    def test_a_llama_that_spin_would_compute_wrongly_is_refused(
        self, name: str, tmp_path: Path
    ) -> None:
        source = LLAMAS[name](tmp_path / "source.gguf")
        with pytest.raises(ModelNotSupported, match="Spin's engine does not know"):
            exported(source, tmp_path, "spin")
