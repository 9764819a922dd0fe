"""What people give: files of texts, prompts, texts to embed, and parameters."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from refllm.api import InferencingParams
from refllm.cli.common import read_text
from refllm.cli.text_files import texts_of
from tools.attack.mutate import (
    ODD_FLOATS,
    ODD_INTEGERS,
    ODD_TEXTS,
    damaged_bytes,
    damaged_json,
    damaged_text,
    odd_value,
)
from tools.attack.target import Input, NotFinite, Target

if TYPE_CHECKING:
    from refllm.engine import LocalEngine

__all__ = ["TARGET"]

MODELS = ("tiny-chat", "tiny-embed")
ROWS = [{"id": 1, "body": "Once upon a time"}, {"id": 2, "body": 'a "b", c'}, {"body": "é\n"}]
TABLE = 'id,body,other\n1,"a, ""b""",x\n2,"two\nlines",y\n3,c,z\n'
FILES: Sequence[tuple[str, bytes]] = (
    ("a.txt", b"Once upon a time.\nA cat.\r\n\n\xc3\xa9\xe2\x80\xa8b\n"),
    ("a.jsonl", "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()),
    ("a.json", json.dumps(ROWS, indent=1).encode()),
    ("a.csv", TABLE.encode()),
    ("a.csv", TABLE.replace(",", ";").encode("utf-8-sig")),
    ("a.tsv", TABLE.replace(",", "\t").encode()),
)
KEYS = (None, "body", "body", "body", "id", "", "é")
RANGES = (
    *((0, 0x80), (0x80, 0x250), (0x300, 0x370), (0x600, 0x700), (0x1100, 0x1200)),
    *((0x2000, 0x2070), (0x4E00, 0x9FFF), (0xD800, 0xE000), (0xFE00, 0xFE10)),
    *((0xFFF0, 0x10000), (0x1F300, 0x1FA00), (0xE0000, 0xE0080), (0x10FF00, 0x110000)),
)
SPECIAL = (
    "<s>",
    "</s>",
    "<unk>",
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "<0x0A>",
    "▁",
    "##a",
    "[INST]",
)
LONGEST = 400  # characters that are repeated no more often than this text is long
# A text to the end of the model's context takes a second, so few inputs ask for it.
MANY_TOKENS = 0.0005


def _prepare(_folder: Path) -> None:
    _engine()


def _build(random: Random, folder: Path) -> Input:
    kind = random.choice(_KINDS)
    name, value = kind(random, folder)
    return Input((name, value), len(repr(value)) + 1000)


def _file(random: Random, folder: Path) -> tuple[str, Any]:
    name, data = random.choice(FILES)
    if name.endswith((".json", ".jsonl")) and random.random() < 0.6:
        damaged = damaged_json(random, ROWS)
        is_lines = name.endswith(".jsonl") and isinstance(damaged, list)
        data = b"\n".join(map(_json, damaged)) if is_lines else _json(damaged)
    elif random.random() < 0.9:
        data = damaged_bytes(random, data)
    if random.random() < 0.05:
        data *= random.choice((2, 50))
    path = folder / name
    path.write_bytes(data)
    return "file", (path, random.choice(KEYS))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _text(random: Random) -> str:
    parts = []
    for _ in range(random.randint(1, 4)):
        kind = random.randrange(6)
        if kind == 0:
            parts.append(random.choice(SPECIAL) * random.choice((1, 1, 2, 30)))
        elif kind == 1:
            parts.append(random.choice(ODD_TEXTS))
        elif kind == 2:
            parts.append(random.choice("a \n\0é😀\u0301\u200d") * random.randrange(LONGEST))
        elif kind == 3:
            low, high = random.choice(RANGES)
            parts.append("".join(chr(random.randrange(low, high)) for _ in range(30)))
        else:
            parts.append("Once upon a time, there was a cat. ")
    text = "".join(parts)
    return damaged_text(random, text) if random.random() < 0.3 else text


def _tokens(random: Random, _folder: Path) -> tuple[str, Any]:
    flags = {"add_special": random.random() < 0.7, "parse_special": random.random() < 0.7}
    limit = random.choice((None, None, 0, 1, 2, 5, 300, 2**32 - 1))
    return "tokens", (random.choice(MODELS), _text(random), {**flags, "max_tokens": limit})


def _ids(random: Random, _folder: Path) -> tuple[str, Any]:
    low, high = random.choice(((0, 300), (0, 2000), (-3, 100_000)))
    ids = [random.randrange(low, high) for _ in range(random.randrange(40))]
    if random.random() < 0.1:
        ids.append(random.choice(ODD_INTEGERS))
    return "ids", (random.choice(MODELS), ids)


def _infer(random: Random, _folder: Path) -> tuple[str, Any]:
    given: dict[str, Any] = {"max_tokens": random.choice((0, 1, 1, 2))}
    for field in fields(InferencingParams):
        if random.random() < 0.3:
            given[field.name] = random.choice((*ODD_INTEGERS, *ODD_FLOATS))
        elif random.random() < 0.03:
            given[field.name] = odd_value(random)
    tokens = given["max_tokens"]
    if isinstance(tokens, int) and 2 < tokens < 2**32 and random.random() > MANY_TOKENS:
        given["max_tokens"] = 1
    prompt = _text(random)[: random.choice((1, 20, 40))]
    return "infer", (prompt, given)


def _embed(random: Random, _folder: Path) -> tuple[str, Any]:
    texts: Any = [_text(random)[: random.choice((1, 20, 60))] for _ in range(random.randrange(3))]
    if random.random() < 0.1:
        texts = damaged_json(random, texts)
    return "embed", (texts, random.choice((None, None, 1, 2, 3, 10, *ODD_INTEGERS)))


_KINDS: Sequence[Callable[[Random, Path], tuple[str, Any]]] = (
    *(_file, _file, _file, _tokens, _tokens, _tokens, _ids, _infer, _embed),
)


@functools.cache
def _engine() -> LocalEngine:
    from refllm.engine import LocalEngine
    from refllm.models.bundled import ROOT

    engine = LocalEngine(roots=[ROOT], threads=1)
    for model in MODELS:
        engine.load(model)
    engine.infer(MODELS[0], "a", InferencingParams(max_tokens=1))
    engine.generate_embeddings(MODELS[1], ["a"])
    return engine


def _read_file(path: Path, field: str | None) -> bytes:
    with contextlib.redirect_stderr(io.StringIO()):  # how many lines are empty
        return repr(texts_of(read_text(str(path)), field, path.name)).encode()


def _read_tokens(model: str, text: str, options: Mapping[str, Any]) -> bytes:
    tokenizer = _engine().load(model).tokenizer
    ids = tokenizer.encode(text, **options)
    return repr((ids, tokenizer.decode(ids), tokenizer.minimum_tokens(text))).encode()


def _read_ids(model: str, ids: Sequence[int]) -> bytes:
    tokenizer = _engine().load(model).tokenizer
    return repr((tokenizer.decode(ids), [tokenizer.piece(i) for i in ids])).encode()


def _read_infer(prompt: str, given: Mapping[str, Any]) -> bytes:
    return repr(_engine().infer(MODELS[0], prompt, InferencingParams(**given))).encode()


def _read_embed(texts: Sequence[str], max_tokens: int | None) -> bytes:
    result = _engine().generate_embeddings(MODELS[1], texts, max_tokens=max_tokens)
    vectors = np.array(result.embeddings, np.float32)
    if not np.isfinite(vectors).all():
        raise NotFinite("a vector")
    return repr((vectors.tobytes(), result.usage, result.truncated)).encode()


_READERS: Mapping[str, Callable[..., bytes]] = {
    "file": _read_file,
    "tokens": _read_tokens,
    "ids": _read_ids,
    "infer": _read_infer,
    "embed": _read_embed,
}


def _read(given: Input) -> bytes:
    name, value = given.value
    return _READERS[name](*value)


TARGET = Target(
    name="texts",
    what="files of texts, prompts, parameters",
    weight=60,
    build=_build,
    read=_read,
    prepare=_prepare,
)
