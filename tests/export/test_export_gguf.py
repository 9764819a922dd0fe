"""GGUF files: what is kept, and what is encoded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from refllm.export import quantize
from refllm.export.gguf import FILE_TYPES, fitting_type
from refllm.ggml.encode import QUANTIZABLE
from tests.support.exports import (
    exported,
    keys_of,
    result,
    tensors_of,
)
from tests.support.model_files import (
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
)
from tests.support.networks import same_bits


class TestGguf:
    def test_without_a_type_a_file_is_copied(self, tmp_path: Path) -> None:
        source = tiny_llama_gguf(tmp_path / "source.gguf", type="Q8_0")
        assert exported(source, tmp_path, "gguf").read_bytes() == source.read_bytes()

    def test_all_metadata_are_kept_with_their_types(self, tmp_path: Path) -> None:
        message = {
            "a.u8": np.uint8(1),
            "a.i16": np.int16(-2),
            "a.u64": np.uint64(2**40),
            "a.f64": np.float64(0.1),
            "a.bool": True,
            "a.text": "zwei\nZeilen",
            "a.texts": ["", "猫"],
            "a.bools": [True, False],
            "general.file_type": 0,
        }
        source = tiny_llama_gguf(tmp_path / "source.gguf", metadata=message)
        before, after = keys_of(source), keys_of(exported(source, tmp_path, "gguf", "Q8_0"))
        assert list(after)[: len(before)] == list(before)
        changed = {"general.file_type", "general.quantization_version"}
        assert {key for key in after if after[key] != before.get(key)} == changed

    @pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
    @pytest.mark.parametrize("make", [tiny_llama_gguf, tiny_bert_gguf])
    def test_matrices_are_encoded_as_the_gguf_package_does_and_nothing_else_is(
        self, make: Callable[..., Path], type_name: str, tmp_path: Path
    ) -> None:
        made = exported(make(tmp_path / "source.gguf"), tmp_path, "gguf", type_name)
        expected = make(tmp_path / "expected.gguf", type=type_name)
        assert tensors_of(made) == tensors_of(expected)

    def test_a_folder_gives_the_tensors_and_keys_of_the_gguf_of_the_same_model(
        self, tmp_path: Path
    ) -> None:
        made = exported(tiny_llama_folder(tmp_path / "source"), tmp_path, "gguf")
        expected = tiny_llama_gguf(tmp_path / "expected.gguf")
        assert tensors_of(made) == tensors_of(expected)
        keys = keys_of(made)
        assert {key: keys[key] for key in keys_of(expected)} == keys_of(expected)

    def test_a_bert_folder_gives_the_tensors_and_keys_of_the_gguf_of_the_same_model(
        self, tmp_path: Path
    ) -> None:
        made = exported(tiny_bert_folder(tmp_path / "source"), tmp_path, "gguf")
        expected = tiny_bert_gguf(tmp_path / "expected.gguf", metadata={"tokenizer.ggml.pre": None})
        assert tensors_of(made) == tensors_of(expected)
        keys = keys_of(made)
        assert {key: keys[key] for key in keys_of(expected)} == keys_of(expected)

    @pytest.mark.parametrize("type_name", QUANTIZABLE)
    def test_the_file_type_is_in_the_metadata(self, type_name: str, tmp_path: Path) -> None:
        source = tiny_llama_gguf(tmp_path / "source.gguf", n_embd=256, n_heads=4, n_ff=256)
        keys = keys_of(exported(source, tmp_path, "gguf", type_name))
        u32 = [gguf.GGUFValueType.UINT32]
        assert keys["general.file_type"] == (u32, FILE_TYPES[type_name])
        assert keys["general.quantization_version"] == (u32, gguf.GGML_QUANT_VERSION)

    def test_q4_k_throughout_is_what_llama_cpp_calls_q4_k_s(self) -> None:
        assert FILE_TYPES["Q4_K"] == 14

    @pytest.mark.parametrize(
        ("type_name", "n_columns", "fitting"),
        [
            ("Q4_K", 512, "Q4_K"),
            ("Q4_K", 288, "Q8_0"),
            ("Q4_K", 172, "F16"),
            ("Q4_0", 172, "F16"),
            ("Q8_0", 64, "Q8_0"),
            ("BF16", 1, "BF16"),
        ],
    )
    def test_a_type_that_does_not_fit_a_row_is_replaced(
        self, type_name: str, n_columns: int, fitting: str
    ) -> None:
        assert fitting_type(type_name, n_columns) == fitting

    def test_only_rows_that_do_not_fit_get_another_type(self, tmp_path: Path) -> None:
        source = tiny_llama_gguf(tmp_path / "source.gguf", n_embd=256, n_heads=4, n_ff=64)
        types = {
            k: t for k, (t, _) in tensors_of(exported(source, tmp_path, "gguf", "Q4_K")).items()
        }
        assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_down.weight"]) == ("Q4_K", "Q8_0")

    def test_half_precision_vectors_of_a_folder_become_f32(self, tmp_path: Path) -> None:
        made = exported(tiny_bert_folder(tmp_path / "source", dtype="F16"), tmp_path, "gguf")
        types = {name: stored_as for name, (stored_as, _) in tensors_of(made).items()}
        assert types["blk.0.attn_q.weight"] == "F16"
        assert types["blk.0.attn_q.bias"] == types["position_embd.weight"] == "F32"

    def test_the_alignment_of_the_source_is_kept(self, tmp_path: Path) -> None:
        metadata = {"general.alignment": 8}
        source = tiny_llama_gguf(tmp_path / "source.gguf", n_ff=96, metadata=metadata)
        made = exported(source, tmp_path, "gguf", "Q8_0")
        assert keys_of(made)["general.alignment"] == keys_of(source)["general.alignment"]
        assert same_bits(result(made), result(exported(made, tmp_path, "hf")))

    def test_big_matrices_are_quantized_piece_by_piece(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        source = tiny_llama_gguf(tmp_path / "source.gguf")
        whole = tmp_path / "whole.gguf"
        quantize(source, whole, type_name="Q4_0")
        monkeypatch.setattr("refllm.quant.NUMBERS_AT_A_TIME", 7 * 32)
        assert exported(source, tmp_path, "gguf", "Q4_0").read_bytes() == whole.read_bytes()

    def test_a_quantized_model_can_be_quantized_again(self, tmp_path: Path) -> None:
        source = tiny_llama_gguf(tmp_path / "source.gguf", type="Q8_0")
        [(_, before), (_, after)] = [
            tensors_of(path)["output.weight"]
            for path in (source, exported(source, tmp_path, "gguf", "Q4_0"))
        ]
        values = quants.dequantize(np.frombuffer(before, np.uint8), GGMLQuantizationType.Q8_0)
        assert after == quants.quantize(values, GGMLQuantizationType.Q4_0).tobytes()
