"""Models in several files: parts of a GGUF file, and shards that an index names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.mapped_file import SPLIT_PART
from refllm.checkpoints.open import open_weights
from refllm.engine import LocalEngine
from refllm.export import export
from refllm.models.find import list_models
from refllm.models.load import load_path
from tests.support.exports import result
from tests.support.model_files import tiny_llama_folder, tiny_llama_gguf
from tests.support.networks import same_bits

N_PARTS = 3


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return tiny_llama_gguf(tmp_path / "whole.gguf")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """The same model in three parts, written by the gguf package."""
    reader = GGUFReader(whole)
    n_in_a_part = -(-len(reader.tensors) // N_PARTS)
    writer = GGUFWriter(None, arch="llama", split_max_tensors=n_in_a_part)
    writer.kv_data[0].clear()
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    folder = tmp_path / "parts"
    folder.mkdir()
    writer.write_header_to_file(folder / "tiny.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.iterdir())


def test_each_part_s_name_opens_the_whole_model(parts: list[Path], whole: Path) -> None:
    assert [path.name for path in parts] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        assert same_bits(result(part), result(whole))


def test_a_folder_of_parts_loads_as_one_model(parts: list[Path], whole: Path) -> None:
    assert same_bits(result(parts[0].parent), result(whole))


def test_the_model_is_listed_and_found_by_its_name_once(parts: list[Path]) -> None:
    root = parts[0].parent
    assert [(model.name, model.path) for model in list_models([root])] == [("tiny", parts[0])]
    assert LocalEngine(roots=[root]).infer("tiny", "the cat").text != ""


def test_a_folder_of_parts_in_a_root_is_found_by_its_name(
    parts: list[Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(parts[0].parent, root / "llama" / "named")
    assert LocalEngine(roots=[root]).infer("named", "the cat").text != ""


def test_an_export_has_one_part(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    made = export(parts[0], to=tmp_path / "made", name="one", layout="gguf")
    assert same_bits(result(made), result(whole))
    assert not any(key.startswith("split.") for key in open_weights(made).hparams)


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(LlmRuntimeError, match=r"tiny-00002-of-00003\.gguf: no such file"):
        load_path(parts[0])


def test_a_renamed_part_is_an_error_with_the_right_name(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("renamed.gguf"))
    with pytest.raises(LlmRuntimeError, match="its name must end in -00001-of-0000N"):
        load_path(renamed)


def test_parts_in_another_order_are_refused(parts: list[Path]) -> None:
    parts[1].rename(parts[1].with_name("kept"))
    parts[2].rename(parts[1])
    parts[1].with_name("kept").rename(parts[2])
    with pytest.raises(LlmRuntimeError, match=r"split\.no is 2, and its name says part 2 of 3"):
        load_path(parts[0])


def test_a_count_of_tensors_that_is_not_reached_is_an_error(
    parts: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    lacking = tiny_llama_gguf(
        other / "tiny-00001-of-00001.gguf", metadata={"split.count": 1, "split.no": 0}
    )
    assert load_path(lacking)
    single = {"split.count": 2, "split.no": 0, "split.tensors.count": 99}
    tiny_llama_gguf(other / "two-00001-of-00002.gguf", metadata=single)
    tiny_llama_gguf(
        other / "two-00002-of-00002.gguf",
        metadata=single | {"split.no": 1},
        tensors=dict.fromkeys(open_weights(lacking).tensors) | {"extra": None},
    )
    with pytest.raises(LlmRuntimeError, match=r"split\.tensors\.count is 99"):
        load_path(other / "two-00001-of-00002.gguf")


class TestShards:
    def index_of(self, folder: Path) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads(
            (folder / "model.safetensors.index.json").read_text()
        )
        return found

    def test_a_tensor_that_only_the_shard_has_is_found(self, tmp_path: Path) -> None:
        folder = tiny_llama_folder(tmp_path / "tiny", shards=2)
        expected = result(folder)
        index = self.index_of(folder)
        del index["weight_map"]["lm_head.weight"]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert same_bits(result(folder), expected)

    def test_a_shard_that_the_index_forgot_is_named(self, tmp_path: Path) -> None:
        folder = tiny_llama_folder(tmp_path / "tiny", shards=3)
        index = self.index_of(folder)
        last = max(index["weight_map"].values())
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != last}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(LlmRuntimeError, match=f"{last}: .* names no tensor of this shard"):
            load_path(folder)

    def test_a_file_of_another_name_is_no_shard(self, tmp_path: Path) -> None:
        folder = tiny_llama_folder(tmp_path / "tiny", shards=2)
        expected = result(folder)
        shard = next(
            path for path in folder.glob("*.safetensors") if SPLIT_PART.fullmatch(path.name)
        )
        shutil.copy(shard, folder / "consolidated.safetensors")
        assert same_bits(result(folder), expected)


class TestOtherFiles:
    def test_an_adapter_is_refused_by_what_to_do(self, tmp_path: Path) -> None:
        folder = tiny_llama_folder(tmp_path / "tiny")
        (folder / "adapter_config.json").write_text("{}")
        with pytest.raises(
            ModelNotSupported, match="holds a LoRA adapter; merge it into its base model"
        ):
            load_path(folder)

    def test_pickled_weights_are_named_with_what_to_do(self, tmp_path: Path) -> None:
        folder = tiny_llama_folder(tmp_path / "tiny")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(LlmRuntimeError, match=r"pytorch_model\.bin must be converted"):
            load_path(folder)

    def test_a_missing_path_is_invalid_input(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="there is no model at"):
            load_path(tmp_path / "absent")
