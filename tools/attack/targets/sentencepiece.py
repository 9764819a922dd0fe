"""tokenizer.model: a SentencePiece model, which is a protobuf message."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from refllm.tokenizer import tokenizer_from_file, tokenizer_from_folder
from tools.attack.models import PIECES, SPECIAL_FILES, protobuf, sentencepiece_model
from tools.attack.mutate import ODD_INTEGERS, ODD_TEXTS, damaged_bytes, damaged_json_text
from tools.attack.reading import read_tokenizer
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

Message = list[Any]  # of fields: number, wire type, value

PIECE, TRAINER, NORMALIZER = 1, 2, 3
SCORES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45, 1.0, -1e9)
SPELLINGS = (
    *(
        text.encode("utf-8", "surrogatepass")
        for text in (*ODD_TEXTS, *PIECES, "▁▁", "a b", "<0x00>")
    ),
    *(b"\xff", b"a\x80", b"\xed\xa0\x80", b"<0x0a>", b"<0xGG>", b"<0x100>", b"<0xFF>"),
)
# trainer_spec: model_type, vocab_size, byte_fallback, ids, pieces by name, and more.
OF_TRAINER: Sequence[tuple[int, int, Sequence[Any]]] = (
    (3, 0, (0, 1, 2, 3, 4, 5, 2**31, 2**63)),
    (4, 0, (0, 1, 26, 2**31, 2**63)),
    (35, 0, (0, 1)),
    (40, 0, (0, 1, 5, 10**6, 2**64 - 1)),
    (41, 0, (0, 1, 5, 10**6, 2**64 - 1)),
    (42, 0, (0, 1, 5, 10**6, 2**64 - 1)),
    (43, 0, (0, 1, 5, 10**6, 2**64 - 1)),
    (44, 2, (b"", b" \xe2\x81\x87 ", b"\xff")),
    (45, 2, (b"<unk>", b"", b"the", b"\xff")),
    (46, 2, (b"<s>", b"", b"no", b"\xff")),
    (47, 2, (b"</s>", b"", b"no", b"\xff")),
    (24, 0, (0, 1)),  # treat_whitespace_as_suffix
    (30, 2, (b"<a>", b"t", b"")),  # control_symbols
    (31, 2, (b"<b>", b"at", b"")),  # user_defined_symbols
)
OF_NORMALIZER: Sequence[tuple[int, int, Sequence[Any]]] = (
    (1, 2, (b"identity", b"nmt_nfkc", b"")),
    (
        2,
        2,
        (
            b"",
            b"\0",
            b"\4\0\0\0\0\0\0\0",
            bytes(16),
            bytes(1024),
            b"\xff" * 64,
            b"\0\4\0\0" + bytes(1100),
        ),
    ),
    (3, 0, (0, 1)),
    (4, 0, (0, 1)),
    (5, 0, (0, 1)),
    (6, 2, (b"61\t62\n",)),
)


def _build(random: Random, folder: Path) -> Input:
    kind = random.choice((1, 2, 2, 2, 3, 4))
    message: Message = sentencepiece_model(kind=kind, bytes_too=random.random() < 0.1)
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(DAMAGES)(random, message)
    data = protobuf(message)
    kind_of_bytes = random.random()
    if kind_of_bytes < 0.15:
        data = damaged_bytes(random, data)
    elif kind_of_bytes < 0.18:
        data = data[: random.randrange(len(data) + 1)]
    (folder / "tokenizer.model").write_bytes(data)
    n_bytes = len(data)
    is_alone = random.random() < 0.4
    if not is_alone:
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            if random.random() < 0.4:
                content = SPECIAL_FILES[name]
                right = json.dumps(content).encode()
                beside = right if random.random() < 0.5 else damaged_json_text(random, content)
                (folder / name).write_bytes(beside)
                n_bytes += len(beside)
    return Input((folder, is_alone), n_bytes)


def _pieces(message: Message) -> list[int]:
    """The places of the pieces; of a message without any, that of its end."""
    return [i for i, (number, _, _) in enumerate(message) if number == PIECE] or [len(message)]


def _piece(spelling: bytes, score: float, kind: int) -> tuple[int, int, Message]:
    return (PIECE, 2, [(1, 2, spelling), (2, 5, struct.pack("<f", score)), (3, 0, kind)])


def _change_piece(random: Random, message: Message) -> None:
    for _ in range(random.choice((1, 1, 2, 10))):
        place = random.choice(_pieces(message))
        if place == len(message) or not isinstance(message[place][2], list):
            continue
        fields = {field[0]: field for field in message[place][2]}
        kind = random.randrange(3)
        if kind == 0:
            fields[1] = (1, 2, random.choice(SPELLINGS))
        elif kind == 1:
            fields[2] = (2, 5, struct.pack("<f", random.choice(SCORES)))
        else:
            fields[3] = (3, 0, random.choice((0, 1, 2, 3, 4, 5, 6, 7, 2**31, 2**64 - 1)))
        message[place] = (PIECE, 2, [*fields.values()])


def _add_piece(random: Random, message: Message) -> None:
    piece = _piece(random.choice(SPELLINGS), random.choice(SCORES), random.randrange(8))
    message.insert(random.choice(_pieces(message)), piece)


def _remove_piece(random: Random, message: Message) -> None:
    place = random.choice(_pieces(message))
    del message[place : place + random.choice((1, 1, 1, 30))]


def _swap(random: Random, message: Message) -> None:
    one, other = random.randrange(len(message) or 1), random.randrange(len(message) or 1)
    if message:
        message[one], message[other] = message[other], message[one]


def _set_spec(random: Random, message: Message) -> None:
    """Set fields of trainer_spec or normalizer_spec."""
    spec, known = random.choice(((TRAINER, OF_TRAINER), (NORMALIZER, OF_NORMALIZER)))
    for i, (number, wire, fields) in enumerate(message):
        if number == spec and isinstance(fields, list):
            changed = [*fields]
            for _ in range(random.choice((1, 1, 3))):
                field, kind, values = random.choice(known)
                changed = [one for one in changed if one[0] != field]
                changed.append((field, kind, random.choice(values)))
            message[i] = (number, wire, changed)


def _damage_field(random: Random, message: Message) -> None:
    """Give a field another number, another wire type or an odd value; remove or repeat it."""
    if not message:
        return
    place = random.randrange(len(message))
    holder, at = message, place
    number, wire, value = message[place]
    if isinstance(value, list) and value and random.random() < 0.7:
        holder, at = [*value], random.randrange(len(value))
        message[place] = (number, wire, holder)
        number, wire, value = holder[at]
    kind = random.randrange(6)
    if kind == 0:
        holder[at] = (random.choice((0, 1, 2, 3, 4, 100, 2**29 - 1, 2**29)), wire, value)
    elif kind == 1:
        holder[at] = (
            number,
            *random.choice(((0, 2**64 - 1), (1, bytes(8)), (2, b"a"), (5, bytes(4)))),
        )
    elif kind == 2:
        holder[at] = (number, random.choice((3, 4, 6, 7)), b"")
    elif kind == 3 and wire == 0:
        holder[at] = (number, wire, random.choice(ODD_INTEGERS) % 2**64)
    elif kind == 4:
        del holder[at]
    else:
        holder.insert(at, holder[at])


def _nest(random: Random, message: Message) -> None:
    """Put an unknown field with messages in messages to the end."""
    nested: Message = [(1, 0, 1)]
    for _ in range(random.choice((10, 99, 101, 1000))):
        nested = protobuf([(200, 2, nested)])  # type: ignore[assignment] # bytes, as a value may be
    message.append((random.choice((PIECE, TRAINER, 200)), 2, nested))


DAMAGES: Sequence[Callable[[Random, Message], None]] = (
    *(_change_piece, _change_piece, _change_piece, _add_piece, _remove_piece, _swap),
    *(_set_spec, _set_spec, _set_spec, _damage_field, _damage_field, _nest),
)


def _read(given: Input) -> bytes:
    folder, is_alone = given.value
    if is_alone:
        return read_tokenizer(tokenizer_from_file(folder / "tokenizer.model"))
    return read_tokenizer(tokenizer_from_folder(folder))


def _prepare(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(protobuf(sentencepiece_model()))
    assert read_tokenizer(tokenizer_from_file(folder / "tokenizer.model"))


TARGET = Target(
    name="tokenizer-model",
    what="tokenizer.model (SentencePiece)",
    weight=150,
    build=_build,
    read=_read,
    prepare=_prepare,
)
