"""Exported models compute the same bits as their source, and are whole or absent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.export import Layout, export, quantize
from refllm.models.load import BertModel, load_path
from tests.support.exports import (
    FOLDERS,
    LAYOUTS,
    LLAMAS,
    TEXTS,
    exported,
    names_in,
    read,
    result,
    tensors_of,
)
from tests.support.model_files import (
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_gguf,
)
from tests.support.networks import same_bits


class TestBits:
    """An export that loses nothing computes what its source computes, to the last bit."""

    @pytest.mark.parametrize("make", LLAMAS.values(), ids=LLAMAS)
    def test_a_gguf_as_a_folder_and_back(
        self, make: Callable[[Path], Path], tmp_path: Path
    ) -> None:
        source = make(tmp_path / "source.gguf")
        folder = exported(source, tmp_path, "hf")
        again = exported(folder, tmp_path, "gguf")
        assert same_bits(result(folder), result(source))
        assert same_bits(result(again), result(source))

    @pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS)
    @pytest.mark.parametrize("layout", ["hf", "gguf"])
    def test_a_folder_as_anything(
        self, make: Callable[[Path], Path], layout: Layout, tmp_path: Path
    ) -> None:
        source = make(tmp_path / "source")
        assert same_bits(result(exported(source, tmp_path, layout)), result(source))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_bert_as_anything(self, layout: Layout, tmp_path: Path) -> None:
        source = tiny_bert_gguf(tmp_path / "source.gguf")
        assert same_bits(result(exported(source, tmp_path, layout)), result(source))

    @pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "tied", "llama3"])
    def test_a_llama_for_spin(self, name: str, tmp_path: Path) -> None:
        source = LLAMAS[name](tmp_path / "source.gguf")
        assert same_bits(result(exported(source, tmp_path, "spin")), result(source))

    def test_a_published_model_there_and_back(self, data_dir: Path, tmp_path: Path) -> None:
        source = data_dir / "stories260K" / "stories260K.gguf"
        folder = exported(source, tmp_path, "hf")
        again = exported(folder, tmp_path, "gguf")
        assert same_bits(result(folder), result(source))
        assert same_bits(result(again), result(source))
        assert tensors_of(again) == tensors_of(source)

    @pytest.mark.network
    def test_a_published_bert_there_and_back(self, minilm_dir: Path, tmp_path: Path) -> None:
        again = exported(exported(minilm_dir, tmp_path, "gguf"), tmp_path, "hf")
        assert same_bits(result(again), result(minilm_dir))


class TestRefusals:
    """Nothing is overwritten, and what fails leaves nothing behind."""

    @pytest.fixture
    def llama(self, tmp_path: Path) -> Path:
        return tiny_llama_gguf(tmp_path / "source.gguf")

    @pytest.mark.parametrize(("layout", "target"), [("hf", "tiny"), ("gguf", "tiny.gguf")])
    def test_a_target_that_exists_is_left_alone(
        self, llama: Path, layout: Layout, target: str, tmp_path: Path
    ) -> None:
        (tmp_path / "exported").mkdir()
        (tmp_path / "exported" / target).write_text("mine")
        with pytest.raises(InvalidInput, match=f"{target} exists already; .*delete"):
            exported(llama, tmp_path, layout)
        assert (tmp_path / "exported" / target).read_text() == "mine"
        assert names_in(tmp_path / "exported") == [target]

    @pytest.mark.parametrize(
        ("layout", "type_name", "name", "message"),
        [
            ("onnx", None, "tiny", "spin, hf, gguf"),
            ("hf", "Q8_0", "tiny", "safetensors files hold F32, F16, BF16"),
            ("spin", "Q4_K", "tiny", "--format gguf"),
            ("gguf", "Q6_K", "tiny", "Q4_K, got 'Q6_K'"),
            ("gguf", None, "../tiny", "not a model's name"),
        ],
    )
    def test_contradicting_arguments_are_refused_by_name(
        self,
        llama: Path,
        layout: Layout,
        type_name: str | None,
        name: str,
        message: str,
        tmp_path: Path,
    ) -> None:
        with pytest.raises(InvalidInput, match=message):
            export(llama, to=tmp_path, name=name, layout=layout, type_name=type_name)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_model_that_is_not_there_is_named(self, layout: Layout, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="absent"):
            exported(tmp_path / "absent.gguf", tmp_path, layout)

    def test_a_quantized_file_has_the_name_of_a_gguf_file(self, llama: Path) -> None:
        with pytest.raises(InvalidInput, match=r"ends in \.gguf"):
            quantize(llama, llama.with_suffix(".bin"), type_name="Q8_0")

    @pytest.mark.parametrize(
        ("layout", "type_name", "largest", "others"),
        [
            ("hf", "F16", 1e6, "BF16 or F32"),
            ("gguf", "F16", 1e6, "BF16 or F32"),
            ("gguf", "Q8_0", -1e7, "BF16 or F32"),
            ("hf", "BF16", 3.4e38, "F32"),
        ],
    )
    def test_a_number_beyond_the_type_leaves_nothing_behind(
        self, layout: Layout, type_name: str, largest: float, others: str, tmp_path: Path
    ) -> None:
        huge = np.ones((32, 32), np.float32)
        huge[31, 31] = largest
        source = tiny_llama_gguf(
            tmp_path / "source.gguf", tensors={"blk.1.attn_output.weight": huge}
        )
        with pytest.raises(
            InvalidInput,
            match=rf"blk.1.attn_output.weight .* as large as {re.escape(f'{abs(largest):g}')}, "
            f"which {type_name} would make infinite; choose {others}",
        ):
            exported(source, tmp_path, layout, type_name)
        assert names_in(tmp_path / "exported") == []

    @pytest.mark.parametrize("layout", ["hf", "spin"])
    @pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.1.attn_k.weight"])
    def test_a_matrix_that_does_not_have_the_heads_rows_is_named(
        self, name: str, layout: Layout, tmp_path: Path
    ) -> None:
        wrong = {name: np.zeros((24, 32), np.float32)}
        source = tiny_llama_gguf(tmp_path / "source.gguf", tensors=wrong)
        with pytest.raises(LlmRuntimeError, match=rf"{name} has the shape \[24, 32\]"):
            exported(source, tmp_path, layout)
        assert not (tmp_path / "exported").exists()

    def test_a_folder_that_cannot_be_written_is_named(self, llama: Path, tmp_path: Path) -> None:
        (tmp_path / "exported").write_text("a file")
        with pytest.raises(LlmRuntimeError, match="exported"):
            exported(llama, tmp_path, "hf")

    def test_a_tokenizer_larger_than_the_model_is_refused(self, tmp_path: Path) -> None:
        source = tiny_bert_folder(tmp_path / "source")
        document = read(source / "tokenizer.json")
        vocabulary = document["model"]["vocab"]
        vocabulary["##more"] = len(vocabulary)
        (source / "tokenizer.json").write_text(json.dumps(document))
        with pytest.raises(ModelNotSupported, match="'##more' is one that texts are cut into"):
            exported(source, tmp_path, "gguf")


def test_quantizing_keeps_embeddings_similar(tmp_path: Path) -> None:
    source = tiny_bert_gguf(tmp_path / "source.gguf")
    quantize(source, tmp_path / "small.gguf", type_name="Q8_0")
    small = load_path(tmp_path / "small.gguf")
    assert isinstance(small, BertModel)
    cosines = np.sum(small.embed(TEXTS) * result(source), axis=1)
    assert cosines == pytest.approx(1, abs=0.001)
