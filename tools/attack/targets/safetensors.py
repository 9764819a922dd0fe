"""Safetensors files, an index and its shards: headers, offsets, dtypes, shapes, numbers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tools.attack.models import Safetensors, folder_of, safetensors_file, stored_folder, write_files
from tools.attack.mutate import (
    ODD_INTEGERS,
    ODD_TEXTS,
    damaged_bytes,
    damaged_json,
    damaged_json_text,
    odd_value,
)
from tools.attack.reading import read_model, view_of, warm_up
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

FAMILIES = ("llama", "bert", "bert", "roberta", "distilbert", "mpnet")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DTYPES = (
    *("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "I64", "I32", "I16", "I8", "U8", "BOOL"),
    *("U16", "U32", "U64", "F4", "C64", "f32", "", "FLOAT"),
)
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
NAMES = (
    "lm_head.weight",
    "embeddings.position_ids",
    "pooler.dense.weight",
    "",
    "é",
    "__metadata__",
)
FLOATS = (b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\0\0\xc0\x7f", b"\xff\xff\x7f\x7f", b"\x01\0\0\0")

Header = dict[str, Any]


def _build(random: Random, folder: Path) -> Input:
    family = random.choice(FAMILIES)
    tensors, files = folder_of(family)
    files = {**files, "config.json": stored_folder(family)["config.json"]}
    if random.random() < 0.25:
        files |= _shards(random, tensors)
    else:
        files[SINGLE] = _file(random, tensors)
    return Input((folder, view_of(random)), write_files(folder, files))


def _file(random: Random, tensors: Safetensors) -> bytes:
    """A file, damaged in its header, in its numbers, or in its bytes."""
    header, data = dict(tensors.header), tensors.data
    kind = random.random()
    if kind < 0.5:
        for _ in range(random.choice((1, 1, 2))):
            data = random.choice(DAMAGES)(random, header, data)
        return _written(random, json.dumps(header).encode(), data)
    if kind < 0.75:
        return _written(random, damaged_json_text(random, header), data)
    if kind < 0.9:
        text = json.dumps(header).encode()
        return safetensors_file(text, _with_odd_numbers(random, data))
    whole = tensors.to_bytes()
    return damaged_bytes(random, whole) if kind < 0.96 else whole[: random.randrange(len(whole))]


def _written(random: Random, header: bytes, data: bytes) -> bytes:
    header += b" " * random.choice((0, 0, -len(header) % 8, 100))
    if random.random() < 0.95:
        return safetensors_file(header, data)
    length = random.choice((len(header) + 1, len(header) - 1, 0, *ODD_INTEGERS)) % 2**64
    return struct.pack("<Q", length) + header + data


def _with_odd_numbers(random: Random, data: bytes) -> bytes:
    if random.random() < 0.2:
        return random.randbytes(len(data))
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 3, 100))):
        at = random.randrange(len(data) // 4) * 4
        changed[at : at + 4] = random.choice(FLOATS)
    return bytes(changed)


# Damage to a header: entries are objects of their own, since the base is shared


def _name_of(random: Random, header: Header) -> str:
    """The name of a tensor; of a header without any, a name that it gets."""
    return random.choice([name for name in header if name != "__metadata__"] or ["a"])


def _entry(header: Header, name: str) -> Header:
    entry = dict(header.get(name) or {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header[name] = entry
    return entry


def _change_dtype(random: Random, header: Header, data: bytes) -> bytes:
    """Change a dtype; half of the time the shape with it, so that the bytes fit."""
    entry = _entry(header, _name_of(random, header))
    dtype = random.choice(DTYPES)
    if dtype in WIDTHS and random.random() < 0.5:
        start, stop = entry["data_offsets"]
        entry["shape"] = [(stop - start) // WIDTHS[dtype]]
    entry["dtype"] = dtype
    return data


def _change_shape(random: Random, header: Header, data: bytes) -> bytes:
    """Change a shape, mostly to one that as many bytes fit."""
    entry = _entry(header, _name_of(random, header))
    shape = entry["shape"]
    total = math.prod(shape)
    entry["shape"] = random.choice(
        (
            [*reversed(shape)],
            [total],
            [1, *shape],
            [*shape, 1],
            [1] * random.choice((1, 3, 4, 5, 100)) + [total],
            [2, total // 2],
            [],
            [0],
            [random.choice(ODD_INTEGERS)],
            [2**32, 2**32],
            odd_value(random),
        )
    )
    return data


def _change_offsets(random: Random, header: Header, data: bytes) -> bytes:
    entry = _entry(header, _name_of(random, header))
    start, stop = entry["data_offsets"]
    entry["data_offsets"] = random.choice(
        (
            [start + 1, stop + 1],
            [start, stop - 4],
            [stop, start],
            [start, random.choice(ODD_INTEGERS)],
            [random.choice(ODD_INTEGERS), stop],
            [start],
            [start, stop, stop],
            _entry(header, _name_of(random, header))["data_offsets"],
            odd_value(random),
        )
    )
    return data


def _remove(random: Random, header: Header, data: bytes) -> bytes:
    """Remove a tensor with its bytes, so that the file stays whole."""
    name = _name_of(random, header)
    start, stop = _entry(header, name)["data_offsets"]
    del header[name]
    if random.random() < 0.2:
        return data
    for other in [name for name in header if name != "__metadata__"]:
        entry = _entry(header, other)
        if entry["data_offsets"][0] >= stop:
            entry["data_offsets"] = [place - (stop - start) for place in entry["data_offsets"]]
    return data[:start] + data[stop:]


def _rename(random: Random, header: Header, data: bytes) -> bytes:
    name = _name_of(random, header)
    entry = _entry(header, name)
    del header[name]
    new = random.choice((*NAMES, name.replace(".0.", ".1."), f"model.{name}", name[:-1]))
    header[new if random.random() < 0.8 else random.choice(ODD_TEXTS)] = entry
    return data


def _add(random: Random, header: Header, data: bytes) -> bytes:
    """Add a tensor behind the others; or one that shares the bytes of another."""
    dtype = random.choice(DTYPES)
    more = bytes(random.choice((0, 4, 32, 128)))
    shape = [len(more) // WIDTHS.get(dtype, 4)]
    offsets = [len(data), len(data) + len(more)]
    header[
        random.choice((*NAMES, "bert.pooler.dense.bias", "model.layers.0.self_attn.q_proj.bias"))
    ] = {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": offsets,
    }
    return data + more


def _change_metadata(random: Random, header: Header, data: bytes) -> bytes:
    """Aliases of tensors, and metadata that are none."""
    names = [name for name in header if name != "__metadata__"] or ["a"]
    header["__metadata__"] = random.choice(
        (
            {random.choice(names): random.choice(names)},
            {"lm_head.weight": random.choice(names)},
            {random.choice(ODD_TEXTS): random.choice(names)},
            {"format": random.choice(ODD_TEXTS)},
            None,
            odd_value(random),
        )
    )
    return data


def _damage_entry(random: Random, header: Header, data: bytes) -> bytes:
    name = _name_of(random, header)
    header[name] = damaged_json(random, _entry(header, name))
    return data


DAMAGES: Sequence[Callable[[Random, Header, bytes], bytes]] = (
    *(_change_dtype, _change_shape, _change_offsets, _remove, _rename, _add, _change_metadata),
)


# Shards


def _shards(random: Random, tensors: Safetensors) -> dict[str, bytes]:
    """The tensors in two files, every other one in each, and the index; one of them damaged."""
    names = [name for name in tensors.header if name != "__metadata__"]
    files: dict[str, bytes] = {}
    weight_map = {}
    damaged = random.randrange(5)
    for number, file in enumerate(SHARDS):
        header: Header = {}
        data = b""
        for name in names[number::2]:
            start, stop = tensors.header[name]["data_offsets"]
            offsets = [len(data), len(data) + stop - start]
            header[name] = {**tensors.header[name], "data_offsets": offsets}
            data += tensors.data[start:stop]
            weight_map[name] = file
        shard = Safetensors(header, data)
        files[file] = _file(random, shard) if damaged == number else shard.to_bytes()
    index = {"metadata": {"total_size": len(tensors.data)}, "weight_map": weight_map}
    files[INDEX] = json.dumps(index).encode()
    if damaged >= 2:
        files[INDEX] = damaged_json_text(random, index)
    elif random.random() < 0.1:
        name = random.choice(names)
        weight_map[name] = random.choice((*SHARDS, "config.json", "../x", SINGLE, *ODD_TEXTS))
        files[INDEX] = json.dumps(index).encode()
    if random.random() < 0.03:
        del files[random.choice((*SHARDS, INDEX))]
    return files


def _prepare(folder: Path) -> None:
    for family in dict.fromkeys(FAMILIES):
        files = stored_folder(family)
        write_files(folder, files)
        warm_up(folder)
        for name in files:
            (folder / name).unlink()


def _read(given: Input) -> bytes:
    folder, (parts, numerics) = given.value
    return read_model(folder, parts, numerics)


TARGET = Target(
    name="safetensors",
    what="safetensors files, indexes and shards",
    weight=100,
    build=_build,
    read=_read,
    prepare=_prepare,
)
