"""GGUF files: what they say is read, and what contradicts itself is refused by name."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings

from refllm.api import LlmError, LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.gguf import read_gguf, read_packed_keys
from refllm.checkpoints.open import Weights, open_gguf
from refllm.models import bundled
from tests.support.damage import damaged
from tests.support.model_files import tiny_llama_gguf, write_gguf

U8, U32, F32_VALUE, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10  # metadata types
F32, Q4_0 = 0, 2  # tensor types
MIB = 2**20

# A file is put together from its parts, so that any part can lie.


def string(text: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def key(name: bytes, value_type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", value_type) + value


def array(item_type: int, length: int, items: bytes) -> bytes:
    return struct.pack("<IQ", item_type, length) + items


def tensor(
    name: bytes = b"t", sizes: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0
) -> bytes:
    dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return string(name) + dimensions + struct.pack("<IQ", kind, offset)


LLAMA_KEY = key(b"general.architecture", STRING, string(b"llama"))


def file(
    *extra_keys: bytes,
    tensors: tuple[bytes, ...] = (tensor(),),
    data: bytes = bytes(range(32)),
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """Write a GGUF file that is valid except for the given parts."""
    keys = (LLAMA_KEY, *extra_keys)
    header = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    header += b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file.gguf"
    path.write_bytes(content)
    return path


# What is read


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read_alike(tmp_path: Path, version: int) -> None:
    weights = open_gguf(written(tmp_path, file(version=version)))
    assert weights.tensors["t"].data.tobytes() == bytes(range(16))


@pytest.mark.parametrize(("sizes", "shape"), [((), "[]"), ((4, 0), "[0, 4]")])
def test_a_tensor_of_one_number_or_none_is_set_aside_with_its_shape(
    sizes: tuple[int, ...], shape: str, tmp_path: Path
) -> None:
    odd = tensor(b"odd", sizes=sizes)
    weights = open_gguf(written(tmp_path, file(tensors=(tensor(), odd))))
    assert weights.others == {"odd": f"F32 {shape}"}
    assert list(weights.tensors) == ["t"]


def test_metadata_are_the_python_values_that_were_written(tmp_path: Path) -> None:
    message: dict[str, object] = {
        "general.architecture": "llama",
        "a.text": "naïve ▁",
        "a.count": 7,
        "a.negative": np.int8(-3),
        "a.large": 2**63 + 1,
        "a.half": 0.5,
        "a.double": np.float64(0.1),
        "a.yes": True,
        "some.tokens": ["<s>", "", "日本"],
        "some.scores": [0.0, -1.5],
        "some.types": [3, -1],
        "some.flags": [True, False],
    }
    hparams = open_gguf(write_gguf(tmp_path / "file.gguf", message)).hparams
    assert hparams == message
    assert [type(value) for value in hparams.values()] == [
        *(str, str, int, int, int, float, float, bool),
        *(list, list, list, list),
    ]


def public_files(data_dir: Path) -> list[Path]:
    return sorted([*data_dir.rglob("*.gguf"), *bundled.ROOT.rglob("*.gguf")])


def test_files_of_other_programs_are_read_as_by_the_gguf_package(data_dir: Path) -> None:
    for path in public_files(data_dir):
        assert_read_as_by_the_package(path)


def test_every_type_of_a_number_and_a_tensor_is_read_as_by_the_gguf_package(
    tmp_path: Path,
) -> None:
    packed_numbers = {
        name: (value_type, struct.pack(f"<{letter}", number))
        for name, value_type, letter, number in (
            *(("u8", 0, "B", 2**8 - 1), ("i8", 1, "b", -(2**7)), ("u16", 2, "H", 2**16 - 1)),
            *(("i16", 3, "h", -(2**15)), ("u32", 4, "I", 2**32 - 1), ("i32", 5, "i", -(2**31))),
            *(("f32", 6, "f", 0.1), ("bool", 7, "B", 2), ("u64", 10, "Q", 2**64 - 1)),
            *(("i64", 11, "q", -(2**63)), ("f64", 12, "d", 0.1)),
        )
    }
    keys = [
        keys_of_type
        for name, (value_type, number) in packed_numbers.items()
        for keys_of_type in (
            key(name.encode(), value_type, number),
            key(f"{name}s".encode(), ARRAY, array(value_type, 3, number * 3)),
        )
    ]
    # The package counts 40 bytes for a block of Q8_1, and ggml has 36.
    types = [ggml_type for ggml_type in gguf.GGML_QUANT_SIZES if ggml_type.name != "Q8_1"]
    infos, data = [], b""
    for ggml_type in types:
        values, n_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
        infos.append(tensor(ggml_type.name.encode(), (values, 3), ggml_type, len(data)))
        data += bytes(range(3 * n_bytes % 256)).ljust(3 * n_bytes, b"\1")
        data += bytes(-len(data) % 32)
    path = written(tmp_path, file(*keys, tensors=tuple(infos), data=data))
    assert len(open_gguf(path).tensors) == len(types)
    assert_read_as_by_the_package(path)


def assert_read_as_by_the_package(path: Path) -> None:
    contents, reader = read_gguf(path), gguf.GGUFReader(path)
    assert contents.metadata == {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")  # the package files the preamble under these
    }
    assert {
        name: (read.format.name, read.shape, read.data.tobytes())
        for name, read in contents.tensors.items()
    } == {
        read.name: (read.tensor_type.name, tuple(read.shape[::-1].tolist()), read.data.tobytes())
        for read in reader.tensors
    }


def test_the_keys_have_the_bytes_of_the_file(data_dir: Path) -> None:
    for path in public_files(data_dir):
        packed = read_packed_keys(path)
        assert list(packed) == list(read_gguf(path).metadata)
        header = b"".join(packed.values())
        assert path.read_bytes()[24 : 24 + len(header)] == header


def test_an_empty_array_is_an_empty_list(tmp_path: Path) -> None:
    path = written(tmp_path, file(key(b"none", ARRAY, array(STRING, 0, b""))))
    assert open_gguf(path).hparams["none"] == []


def test_sizes_come_fastest_first_and_shapes_rows_first(tmp_path: Path) -> None:
    content = file(tensors=(tensor(sizes=(4, 3, 2)),), data=bytes(96))
    read = open_gguf(written(tmp_path, content)).tensors["t"]
    assert (read.shape, read.data.shape) == ((2, 3, 4), (6, 16))


def test_the_largest_allowed_alignment_of_a_file_is_obeyed(tmp_path: Path) -> None:
    content = file(key(b"general.alignment", U32, struct.pack("<I", 1024)), data=b"")
    path = written(tmp_path, content.ljust(1024, b"\0") + bytes(range(16)))
    assert open_gguf(path).tensors["t"].data.tobytes() == bytes(range(16))


def test_every_type_gguf_py_can_quantize_to_is_read_as_its_bytes(tmp_path: Path) -> None:
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        path = tiny_llama_gguf(tmp_path / f"{name}.gguf", type=name)
        expected = {read.name: read.data.tobytes() for read in gguf.GGUFReader(path).tensors}
        tensors = open_gguf(path).tensors
        assert {name: read.data.tobytes() for name, read in tensors.items()} == expected
        assert tensors["token_embd.weight"].format.name == name


# What is refused

DAMAGED = {
    "empty": (b"", "the file is empty"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "another magic": (b"ggml" + file()[4:], r"not a GGUF file \(it begins with b'ggml'\)"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "magic only": (b"GGUF", "truncated after 4 bytes"),
    "short preamble": (file()[:20], "truncated after 20 bytes"),
    "version 1": (file(version=1), "GGUF version 1;"),
    "version 4": (file(version=4), "GGUF version 4;"),
    "2^60 keys": (file(n_keys=2**60), f"announces {2**60} metadata keys"),
    "2^60 tensors": (file(n_tensors=2**60), rf"{2**60} tensors, more than fit into \d+ bytes"),
    "one key too many": (file(n_keys=2), "tensor ''"),
    "one tensor too many": (file(tensors=(tensor(),), n_tensors=2, data=bytes(64)), "tensor ''"),
    "key longer than the file": (
        file(string(b"k", length=2**60)),
        rf"{2**60} bytes expected.*'general.architecture'",
    ),
    "key of 2^64 - 1 bytes": (file(string(b"k", length=2**64 - 1)), "bytes expected at offset"),
    "text longer than the file": (
        file(key(b"k", STRING, string(b"", length=10**6))),
        "1000000 bytes expected",
    ),
    "key not UTF-8": (file(key(b"\xff", U8, b"\0")), "damaged header: 'utf-8' codec"),
    "text not UTF-8": (file(key(b"k", STRING, string(b"\xff"))), "metadata key 'k' is not UTF-8"),
    "token not UTF-8": (
        file(key(b"k", ARRAY, array(STRING, 1, string(b"\xe6\x97")))),
        "metadata key 'k' is not UTF-8",
    ),
    "unknown value type": (file(key(b"k", 13, b"")), "'general.architecture' has unknown type 13"),
    "unknown item type": (file(key(b"k", ARRAY, array(77, 1, b""))), "unknown type 77"),
    "array of arrays": (
        file(key(b"k", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0")))),
        "array of arrays",
    ),
    "2^60 numbers": (file(key(b"k", ARRAY, array(F32_VALUE, 2**60, b""))), f"{2**60} items"),
    "2^60 strings": (file(key(b"k", ARRAY, array(STRING, 2**60, b""))), f"{2**60} items"),
    "more numbers than the file": (
        file(key(b"k", ARRAY, array(U64, 10**6, b""))),
        "8000000 bytes expected",
    ),
    "more strings than the file": (
        file(key(b"k", ARRAY, array(STRING, 10**6, b""))),
        "bytes expected",
    ),
    "more small numbers than any model has": (
        file(key(b"k", ARRAY, array(U8, 5 * MIB, bytes(5 * MIB)))),
        f"{5 * MIB} items altogether",
    ),
    "key twice": (file(LLAMA_KEY), "Duplicate general.architecture"),
    "tensor twice": (
        file(tensors=(tensor(), tensor(offset=32)), data=bytes(64)),
        "duplicated tensor with name t",
    ),
    "alignment 0": (file(key(b"general.alignment", U32, struct.pack("<I", 0))), "alignment"),
    "alignment 48": (file(key(b"general.alignment", U32, struct.pack("<I", 48))), "alignment"),
    "alignment 4": (
        file(key(b"general.alignment", U32, struct.pack("<I", 4))),
        "general.alignment is 4, and must be a multiple of 8",
    ),
    "alignment 2^31": (
        file(key(b"general.alignment", U32, struct.pack("<I", 2**31))),
        f"tensor 't' has 16 bytes at {2**31}",
    ),
    "alignment a text": (file(key(b"general.alignment", STRING, string(b"32"))), "alignment"),
    "tensor name not UTF-8": (file(tensors=(tensor(b"\xff"),)), "damaged header: 'utf-8' codec"),
    "5 dimensions": (file(tensors=(tensor(sizes=(1,) * 5),)), "'t' has 5 dimensions"),
    "2^32 - 1 dimensions": (
        file(tensors=(string(b"t") + struct.pack("<I", 2**32 - 1),)),
        "bytes expected at offset",
    ),
    "a shape whose product overflows to 0": (
        file(tensors=(tensor(sizes=(2**32, 2**32)),)),
        f"'t' has {2**66} bytes",
    ),
    "a shape whose product overflows to 16": (
        file(tensors=(tensor(sizes=(4, 2**62 + 1, 2**2)),)),
        "'t' has .* outside the file",
    ),
    "half a block": (file(tensors=(tensor(sizes=(16, 2), kind=Q4_0),)), "Q4_0 stores .* of 32"),
    "unknown tensor type": (file(tensors=(tensor(kind=99),)), "'t' has the unknown GGML type 99"),
    "removed tensor type": (file(tensors=(tensor(kind=4),)), "'t' has the unknown GGML type 4"),
    "offset outside the file": (
        file(tensors=(tensor(offset=2**20),)),
        f"'t' has 16 bytes at .* {2**20}, outside",
    ),
    "offset that wraps around": (file(tensors=(tensor(offset=2**64 - 32),)), "outside the file"),
    "offset not aligned": (file(tensors=(tensor(offset=8),)), "'t' has offset 8, not a multiple"),
    "two tensors in one place": (
        file(tensors=(tensor(b"a", (8,)), tensor(b"b", (4,)))),
        "the tensors 'b' and 'a' overlap",
    ),
    "truncated data": (file()[:-20], "'t' has 16 bytes .* outside the file's"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    content, complaint = DAMAGED[case]
    path = written(tmp_path, content)
    with pytest.raises(LlmRuntimeError, match=f"(?s){path}: .*({complaint})"):
        open_gguf(path)


def test_a_big_endian_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = written(tmp_path, struct.pack(">4sIQQ", b"GGUF", 3, 0, 0))
    with pytest.raises(ModelNotSupported, match="big-endian GGUF file; convert it to little-end"):
        open_gguf(path)


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_takes_no_more_memory_than_twice_itself(tmp_path: Path, case: str) -> None:
    content, _ = DAMAGED[case]
    path = written(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(LlmRuntimeError):
            open_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content) + MIB


def test_every_truncation_of_a_header_is_refused(tmp_path: Path) -> None:
    whole = file(key(b"k", ARRAY, array(STRING, 2, string(b"ab") + string(b""))))
    for length in range(len(whole) - 16):  # the last 16 bytes belong to no tensor
        with pytest.raises(LlmRuntimeError):
            open_gguf(written(tmp_path, whole[:length]))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match="no such file"):
        open_gguf(tmp_path)


def opened_or_refused(path: Path) -> Weights | LlmError:
    try:
        return open_gguf(path)
    except LlmError as error:
        return error


SOUND = file(
    key(b"general.alignment", U32, struct.pack("<I", 32)),
    key(b"tokens", ARRAY, array(STRING, 2, string(b"ab") + string(b"c"))),
    key(b"scores", ARRAY, array(F32_VALUE, 2, bytes(8))),
    tensors=(tensor(b"a", (4, 2)), tensor(b"b", (32,), Q4_0, 32)),
    data=bytes(64),
)


@given(content=damaged(SOUND))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_any_damage_gives_weights_or_an_error_of_the_interface(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = written(tmp_path_factory.getbasetemp(), content)
    outcome = opened_or_refused(path)
    assert isinstance(outcome, Weights) or str(path) in str(outcome)
