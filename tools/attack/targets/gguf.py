"""GGUF files: llamas and BERTs whose header, keys, tensors and blocks are damaged."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tools.attack.gguf_parts import Gguf, Key, StoredTensor, bases, packed_value
from tools.attack.mutate import ODD_INTEGERS, ODD_TEXTS, damaged_bytes, damaged_text, odd_value
from tools.attack.reading import read_model, view_of, warm_up
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

NAME = "model.gguf"
SPLIT = ("model-00001-of-00002.gguf", "model-00002-of-00002.gguf")
MAX_BYTES = 2_000_000  # of a tensor that is made longer to fit its new shape

# Keys that change what is computed, and what a file may say under them.
OPTIONAL: Sequence[tuple[str, Sequence[object]]] = (
    ("general.alignment", (8, 16, 32, 64, 4, 0, 1, 2**31, 24)),
    ("general.type", ("model", "adapter")),
    ("llama.rope.scaling.type", ("none", "linear", "yarn", "longrope", "su")),
    ("llama.rope.scaling.factor", (0.0, 1.0, 2.0, 8.0, 1e-30, 1e30, math.inf, math.nan, -1.0)),
    ("llama.rope.scale_linear", (0.0, 2.0, 1e38)),
    ("llama.rope.scaling.attn_factor", (1.0, 0.5, 1e-38, 3e38)),
    ("llama.rope.scaling.yarn_attn_factor", (1.0, 0.5, 1e-38, 3e38)),
    ("llama.rope.scaling.original_context_length", (1, 16, 64, 2**31 - 1)),
    ("llama.rope.scaling.yarn_beta_fast", (32.0, 1.0, 1e-30, 1e30)),
    ("llama.rope.scaling.yarn_beta_slow", (1.0, 32.0, 1e-30, 1e30)),
    ("llama.rope.freq_base", (1.0, 1.0000001, 0.5, 1e-30, 1e38)),
    ("llama.rope.dimension_count", (2, 3, 8, 64, 2**20)),
    ("llama.attention.key_length", (2, 3, 8, 2**20)),
    ("llama.attention.sliding_window", (0, 1, 64, 2**31)),
    ("llama.attention.head_count", (1, 2, 3, 65536, [2], [2, 2], [1, 2])),
    ("llama.block_count", (0, 1, 2, 4096)),
    ("llama.context_length", (1, 2, 2**20, 2**31 - 1)),
    ("llama.expert_count", (0, 8)),
    ("bert.pooling_type", (0, 1, 2, 3, 4)),
    ("bert.context_length", (1, 2, 25, 2**20)),
    ("bert.block_count", (0, 2, 4096)),
    ("bert.attention.layer_norm_epsilon", (0.0, 1e-45, 1e38, math.nan)),
    ("tokenizer.ggml.add_eos_token", (True, False)),
    ("tokenizer.ggml.add_bos_token", (True, False)),
    ("tokenizer.ggml.add_space_prefix", (True, False)),
    ("tokenizer.ggml.remove_extra_whitespaces", (True, False)),
    ("tokenizer.ggml.pre", ("default", "llama-bpe", "qwen2", "gpt-2", "smollm", "no such")),
    ("tokenizer.ggml.model", ("llama", "gpt2", "bert", "t5", "none", "rwkv")),
    ("tokenizer.ggml.eot_token_id", (0, 3, -1, 2**32 - 1, 10**6)),
    ("tokenizer.ggml.fim_pre_token_id", (0, 3, -1, 2**32 - 1, 10**6)),
    ("tokenizer.huggingface.truncation.max_length", (-1, 0, 1, 2, 3, 10**6)),
    ("tokenizer.huggingface.truncation.direction", ("left", "right", "up")),
    ("tokenizer.chat_template", ("chatml", "", "{% break %}", "{{ 9 ** 9 }}")),
    ("tokenizer.chat_template.tool_use", ("{{ 1 }}", 3)),
    ("split.count", (0, 1, 2, 65535)),
    ("split.no", (0, 1, 2)),
    ("split.tensors.count", (0, 12, 13)),
)
OPTIONAL_TENSORS = (
    *(b"rope_freqs.weight", b"output.weight", b"blk.0.attn_q.bias", b"blk.0.ffn_down.bias"),
    *(
        b"blk.0.attn_qkv.weight",
        b"blk.0.attn_qkv.bias",
        b"blk.1.attn_q.weight",
        b"token_types.weight",
    ),
    *(b"blk.0.attn_q.scale", b"", b"cls.weight", b"blk.00.attn_q.weight", "é".encode(), b"\xff"),
)
TYPES = [int(kind) for kind in GGML_QUANT_SIZES]
SIZES = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
# Halves and floats at the ends of what they hold, and past them.
EXTREMES = (b"\x00\x7c", b"\x00\xfc", b"\x00\x7e", b"\xff\x7b", b"\x01\x00", b"\xff\xff")
FLOATS = (math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 1e20)


def _build(random: Random, folder: Path) -> Input:
    file = random.choice(bases()).copy()
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(DAMAGES)(random, file)
    view = view_of(random)
    if random.random() < 0.03:
        return _in_two(random, file, folder, view)
    data = file.to_bytes()
    kind = random.random()
    if kind < 0.04:
        data = data[: random.randrange(len(data) + 1)]
    elif kind < 0.12:
        data = damaged_bytes(random, data)
    path = folder / NAME
    path.write_bytes(data)
    return Input((path, view), len(data))


def _in_two(random: Random, file: Gguf, folder: Path, view: object) -> Input:
    """Write the file as two, as `llama-gguf-split` does."""
    middle = random.randrange(len(file.tensors) + 1)
    tensors = (file.tensors[:middle], file.tensors[middle:])
    n_bytes = 0
    for number, name in enumerate(SPLIT):
        keys = [
            *(file.keys if number == 0 else []),
            _key(b"split.no", number if random.random() < 0.9 else random.choice(ODD_INTEGERS)),
            _key(b"split.count", 2 if random.random() < 0.9 else random.choice(ODD_INTEGERS)),
            _key(b"split.tensors.count", len(file.tensors)),
        ]
        data = Gguf(keys, tensors[number]).to_bytes()
        if random.random() < 0.95:
            (folder / name).write_bytes(data)
            n_bytes += len(data)
    path = random.choice((folder, folder / SPLIT[0], folder / SPLIT[1]))
    return Input((path, view), n_bytes)


def _key(name: bytes, value: object, kind: int | None = None) -> Key:
    return Key(name, value, packed_value(value, kind))


# Damage to keys


def _change_value(random: Random, file: Gguf) -> None:
    place = _place(random, file.keys)
    name, value, _ = file.keys[place]
    file.keys[place] = _key(
        name, _changed(random, value), random.choice((None, None, 0, 5, 10, 12))
    )


def _changed(random: Random, value: object) -> object:
    match value:
        case list():
            return _changed_array(random, value)
        case bool():
            return not value if random.random() < 0.5 else odd_value(random)
        case int() if random.random() < 0.7:
            return random.choice((value + 1, value - 1, value * 2, value // 2, *ODD_INTEGERS))
        case float() if random.random() < 0.7:
            return random.choice((*FLOATS, value * 2, -value, value * 1e30, value * 1e-30))
        case str() if random.random() < 0.7:
            return damaged_text(random, value)
    return odd_value(random)


def _changed_array(random: Random, values: list[object]) -> list[object]:
    result = [*values]
    for _ in range(random.choice((1, 1, 2, 10))):
        place = random.randrange(len(result) + 1)
        kind = random.randrange(7)
        if kind == 0 or place == len(result):
            result.insert(place, random.choice((*ODD_TEXTS, *ODD_INTEGERS, *FLOATS)))
        elif kind == 1:
            del result[place]
        elif kind == 2:
            result[place] = random.choice(result)
        elif kind == 3:
            result[place] = _changed(random, result[place])
        elif kind == 4:
            result = result[:place]
        elif kind == 5 and isinstance(result[place], str):
            result[place] = random.choice((b"\xff\xfe", b"a\x80", b"\xed\xa0\x80"))
        else:
            other = random.randrange(len(result))
            result[place], result[other] = result[other], result[place]
    return result


def _misdescribe_value(random: Random, file: Gguf) -> None:
    """Leave the value's bytes, and change its type, its length or the type of its items."""
    place = _place(random, file.keys)
    name, value, packed = file.keys[place]
    at = random.choice((0, 4, 8))  # the type; of an array the items' type; the number of items
    layout = "<Q" if at == 8 or (at == 4 and packed[0] == 8) else "<I"
    number = random.choice((*range(14), *ODD_INTEGERS)) % 2 ** (8 * struct.calcsize(layout))
    changed = bytearray(packed)
    changed[at : at + struct.calcsize(layout)] = struct.pack(layout, number)
    file.keys[place] = Key(name, value, bytes(changed))


def _damage_value(random: Random, file: Gguf) -> None:
    place = _place(random, file.keys)
    name, value, packed = file.keys[place]
    file.keys[place] = Key(name, value, damaged_bytes(random, packed))


def _add_key(random: Random, file: Gguf) -> None:
    name, values = random.choice(OPTIONAL)
    value = random.choice((*values, *values, odd_value(random)))
    if random.random() < 0.8:
        file.keys = [key for key in file.keys if key.name != name.encode()]
    file.keys.insert(random.randint(0, len(file.keys)), _key(name.encode(), value))
    if name == "general.alignment" and isinstance(value, int) and 0 < value < 4096:
        file.alignment = value if random.random() < 0.7 else file.alignment


def _remove_key(random: Random, file: Gguf) -> None:
    del file.keys[_place(random, file.keys)]


def _repeat_key(random: Random, file: Gguf) -> None:
    file.keys.insert(_place(random, file.keys), random.choice(file.keys))


def _rename_key(random: Random, file: Gguf) -> None:
    place = _place(random, file.keys)
    names = [key.name for key in file.keys] + [b"", b"GGUF.version", b"\xff", b"a" * 70000]
    new = random.choice((damaged_bytes(random, file.keys[place].name), random.choice(names)))
    file.keys[place] = file.keys[place]._replace(name=new)


def _swap_values(random: Random, file: Gguf) -> None:
    one, other = _place(random, file.keys), _place(random, file.keys)
    first, second = file.keys[one], file.keys[other]
    file.keys[one] = second._replace(name=first.name)
    file.keys[other] = first._replace(name=second.name)


# Damage to tensors


def _change_sizes(random: Random, file: Gguf) -> None:
    place = _place(random, file.tensors)
    tensor = file.tensors[place]
    sizes = [*tensor.sizes]
    at = random.randrange(len(sizes)) if sizes else 0
    kind = random.randrange(6)
    if kind == 0:
        sizes[at : at + 1] = [random.choice(ODD_INTEGERS)]
    elif kind == 1:
        sizes = sizes[::-1]
    elif kind == 2:
        sizes.insert(at, random.choice((0, 1, 2, 2**32, 2**63)))
    elif kind == 3 and sizes:
        del sizes[at]
    elif kind == 4 and sizes:
        sizes[at] = random.choice((sizes[at] * 2, sizes[at] // 2, sizes[at] + 32, sizes[at] - 1))
    else:
        sizes = [random.choice(ODD_INTEGERS) for _ in range(random.choice((0, 1, 2, 4, 5, 300)))]
    _put(random, file, place, tensor._replace(sizes=tuple(sizes)))


def _change_type(random: Random, file: Gguf) -> None:
    place = _place(random, file.tensors)
    kind = random.choice((*TYPES, *TYPES, *ODD_INTEGERS))
    _put(random, file, place, file.tensors[place]._replace(kind=kind))


def _put(random: Random, file: Gguf, place: int, tensor: StoredTensor) -> None:
    """Put the tensor there, mostly with as many bytes as its shape and type have."""
    n_values = math.prod(tensor.sizes)
    if tensor.kind in SIZES and random.random() < 0.8:
        values_in_block, bytes_in_block = SIZES[tensor.kind]
        n_bytes = n_values // values_in_block * bytes_in_block
        if 0 <= n_bytes <= MAX_BYTES:
            repeated = tensor.data * (n_bytes // max(len(tensor.data), 1) + 1)
            tensor = tensor._replace(data=repeated[:n_bytes])
    file.tensors[place] = tensor


def _change_offset(random: Random, file: Gguf) -> None:
    place = _place(random, file.tensors)
    offset = random.choice((0, 1, 31, 32, 64, 1024, *ODD_INTEGERS))
    file.tensors[place] = file.tensors[place]._replace(offset=offset)


def _rename_tensor(random: Random, file: Gguf) -> None:
    place = _place(random, file.tensors)
    old = file.tensors[place].name
    names = (random.choice(file.tensors).name, damaged_bytes(random, old), *OPTIONAL_TENSORS)
    file.tensors[place] = file.tensors[place]._replace(name=random.choice(names))


def _add_tensor(random: Random, file: Gguf) -> None:
    name = random.choice((*OPTIONAL_TENSORS, *(tensor.name for tensor in file.tensors)))
    like = random.choice(file.tensors)
    if name == b"rope_freqs.weight" and random.random() < 0.7:
        factors = np.array([random.choice((1.0, 1.0, 8.0, *FLOATS)) for _ in range(8)], "<f4")
        like = StoredTensor(name, (8,), 0, factors.tobytes())
    file.tensors.insert(_place(random, file.tensors), like._replace(name=name))


def _remove_tensor(random: Random, file: Gguf) -> None:
    del file.tensors[_place(random, file.tensors)]


def _change_numbers(random: Random, file: Gguf) -> None:
    """Make a tensor's blocks random, or put infinities, NaN and the largest numbers into them."""
    place = _place(random, file.tensors)
    tensor = file.tensors[place]
    data = bytearray(tensor.data)
    kind = random.randrange(5)
    if kind == 0:
        data = bytearray(random.randbytes(len(data)))
    elif kind == 1:
        data = bytearray(bytes([random.choice((0, 0x7F, 0x80, 0xFF))]) * len(data))
    else:
        if tensor.kind == GGMLQuantizationType.F32:
            step, fill = 4, struct.pack("<f", random.choice(FLOATS))
        else:
            step = SIZES.get(tensor.kind, (1, 2))[1] if random.random() < 0.7 else 1
            fill = random.choice(EXTREMES)
        within = (
            random.choice((0, 0, 2, step - 2, random.randrange(max(step, 1)))) if step > 4 else 0
        )
        for _ in range(random.choice((1, 1, 3, 50))):
            at = random.randrange(max(len(data) // step, 1)) * step + max(within, 0)
            data[at : at + len(fill)] = fill[: max(len(data) - at, 0)]
    file.tensors[place] = tensor._replace(data=bytes(data))


# Damage to the header


def _change_header(random: Random, file: Gguf) -> None:
    kind = random.randrange(5)
    number = random.choice(ODD_INTEGERS)
    if kind == 0:
        file.magic = random.choice((b"", b"GGUX", b"FUGG", b"GGML", b"\0\0\0\0"))
    elif kind == 1:
        file.version = random.choice((0, 1, 2, 3, 4, 3 << 24, 2**32 - 1))
    elif kind == 2:
        file.n_keys = random.choice((number, len(file.keys) + 1, len(file.keys) - 1, 2**60))
    elif kind == 3:
        file.n_tensors = random.choice(
            (number, len(file.tensors) + 1, len(file.tensors) - 1, 2**60)
        )
    else:
        file.alignment = random.choice((1, 8, 16, 33, 64, 4096))


def _place(random: Random, items: Sequence[object]) -> int:
    """A place in a list, which is never empty: a file loses at most three parts."""
    return random.randrange(len(items))


DAMAGES: Sequence[Callable[[Random, Gguf], None]] = (
    *(_change_value, _change_value, _change_value, _change_value, _add_key, _add_key, _add_key),
    *(_misdescribe_value, _damage_value, _remove_key, _repeat_key, _rename_key, _swap_values),
    *(_change_sizes, _change_sizes, _change_type, _change_offset, _rename_tensor, _add_tensor),
    *(_remove_tensor, _change_numbers, _change_numbers, _change_numbers, _change_numbers),
    *(_change_header,),
)


def _prepare(folder: Path) -> None:
    """Read every base once, so that no kernel is compiled while an input is judged."""
    for file in bases():
        (folder / NAME).write_bytes(file.to_bytes())
        warm_up(folder / NAME)
        (folder / NAME).unlink()


def _read(given: Input) -> bytes:
    path, (parts, numerics) = given.value
    return read_model(path, parts, numerics)


TARGET = Target(
    name="gguf",
    what="GGUF files",
    weight=120,
    build=_build,
    read=_read,
    prepare=_prepare,
)
