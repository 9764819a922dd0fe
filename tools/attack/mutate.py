"""Damage: to bytes, to JSON values, and to the text of a JSON document.

Structure-aware mutation keeps most of an input right, so that the damage is met deep inside and not
by the first check. Every function draws from the `Random` that it is given and from nothing else.
"""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

__all__ = [
    "ODD_FLOATS",
    "ODD_INTEGERS",
    "ODD_TEXTS",
    "damaged_bytes",
    "damaged_json",
    "damaged_json_text",
    "damaged_text",
    "odd_value",
]

ODD_INTEGERS: Sequence[int] = (
    *(0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 127, 128, 255, 256, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    *(-(2**31), -(2**63), -(2**64), 10**19, 10**400),
)
ODD_FLOATS: Sequence[float] = (
    *(0.0, -0.0, 0.5, -0.5, 1e-5, 1e-45, 1e-300, 1e38, 1e39, 1e308, -1e308, 1.0000001),
    *(math.inf, -math.inf, math.nan),
)
ODD_TEXTS: Sequence[str] = (
    *("", " ", "\n", "\0", "a", "é", "\u2028", "\ufeff", "\U0001f600", "null", "true", "0", "-1"),
    *("..", "/", "../x", "C:\\x", "%s", "{}", "{{", "<s>", "</s>", "<unk>", "[CLS]", "<0x41>"),
    *("llama", "bert", "gelu", "float16", "a" * 300, "é" * 5000),
)
MAX_NESTED = 300  # deeper than any file, and shallower than CPython's own limit
MAX_REPEATED = 3000  # of one item: more than any count that a network has


def odd_value(random: Random) -> Any:
    """A JSON value that is seldom what a reader expects."""
    kind = random.randrange(9)
    if kind == 0:
        return random.choice((None, True, False))
    if kind == 1:
        return random.choice(ODD_INTEGERS)
    if kind == 2:
        return random.choice(ODD_FLOATS)
    if kind == 3:
        return random.choice(ODD_TEXTS)
    if kind == 4:
        return [odd_value(random) for _ in range(random.randrange(4))]
    if kind == 5:
        return {random.choice(ODD_TEXTS): odd_value(random) for _ in range(random.randrange(4))}
    if kind == 6:
        return [random.choice(ODD_INTEGERS)] * random.randrange(MAX_REPEATED)
    if kind == 7:
        return random.randrange(-10, 1000)
    nested: Any = random.choice((None, 1, "a"))
    for _ in range(random.randrange(MAX_NESTED)):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    return nested


def damaged_json(random: Random, value: Any, *, n_most: int = 3) -> Any:
    """A copy of a JSON value with one to `n_most` damages, each at a place drawn from all of it."""
    result = [copy.deepcopy(value)]  # a list, so that the whole value has a place, too
    for _ in range(random.randint(1, n_most)):
        places = [*_places(result)]
        if not places:  # the whole was removed
            break
        holder, key = random.choice(places)
        random.choice(_DAMAGES)(random, holder, key)
    return result[0] if result else None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a JSON value, but few of the items of a long list."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys: Sequence[Any] = [*one] if isinstance(one, dict) else range(min(len(one), 20))
        for key in keys[:200]:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                waiting.append(one[key])
    return found


def _replace(random: Random, holder: Any, key: Any) -> None:
    holder[key] = odd_value(random)


def _nudge(random: Random, holder: Any, key: Any) -> None:
    """A number near the right one, a text with one change, the other truth."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int):
        holder[key] = value + random.choice((-1, 1, 2, 8, -value, value, 32))
    elif isinstance(value, float):
        holder[key] = value * random.choice((-1.0, 0.0, 2.0, 1e-30, 1e30))
    elif isinstance(value, str):
        holder[key] = damaged_text(random, value)
    else:
        holder[key] = odd_value(random)


def _remove(random: Random, holder: Any, key: Any) -> None:
    del holder[key]


def _rename(random: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[random.choice((damaged_text(random, key), *ODD_TEXTS))] = holder.pop(key)
    else:
        holder.insert(key, odd_value(random))


def _swap(random: Random, holder: Any, key: Any) -> None:
    keys = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
    other = random.choice(keys)
    holder[key], holder[other] = holder[other], holder[key]


def _repeat(random: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[f"{key}{random.choice(ODD_TEXTS)}"] = holder[key]
    else:
        holder.extend([holder[key]] * random.choice((1, 2, 100)))


_DAMAGES: Sequence[Callable[[Random, Any, Any], None]] = (
    *(_replace, _replace, _nudge, _nudge),
    *(_remove, _rename, _swap, _repeat),
)


def damaged_json_text(random: Random, value: Any) -> bytes:
    """A JSON document: mostly a damaged value, well written; sometimes damage to the text."""
    kind = random.random()
    if kind < 0.8:
        return json.dumps(damaged_json(random, value)).encode()
    text = json.dumps(value).encode()
    if kind < 0.95:
        return damaged_bytes(random, text)
    keys = [key for holder, key in _places([value]) if isinstance(holder, dict)]
    if not keys:
        return damaged_bytes(random, text)
    again = json.dumps({random.choice(keys): odd_value(random)}).encode()
    return text[:-1] + b"," + again[1:]  # perhaps a key that is there already


def damaged_text(random: Random, text: str) -> str:
    """A text with one change."""
    place = random.randint(0, len(text))
    kind = random.randrange(5)
    if kind == 0:
        return text[:place] + random.choice(ODD_TEXTS) + text[place:]
    if kind == 1:
        return text[:place]
    if kind == 2:
        return text[:place] + text[place + random.randint(1, 8) :]
    if kind == 3:
        return text + text
    return text.swapcase()


def damaged_bytes(random: Random, data: bytes, *, n_most: int = 4) -> bytes:
    """Bytes with one to `n_most` damages: flipped, cut, repeated, overwritten by an odd number."""
    result = bytearray(data)
    for _ in range(random.randint(1, n_most)):
        place = random.randint(0, len(result))
        kind = random.randrange(7)
        if kind == 0 and place < len(result):
            result[place] ^= 1 << random.randrange(8)
        elif kind == 1 and place < len(result):
            result[place] = random.randrange(256)
        elif kind == 2:
            number = random.choice(ODD_INTEGERS) % 2**64
            packed = struct.pack("<Q", number)[: random.choice((1, 2, 4, 8))]
            result[place : place + len(packed)] = packed
        elif kind == 3:
            del result[place : place + random.choice((1, 2, 4, 8, 100))]
        elif kind == 4:
            result[place:place] = random.randbytes(random.choice((1, 2, 4, 8, 100)))
        elif kind == 5:
            start = random.randint(0, len(result))
            result[place:place] = result[start : start + random.choice((4, 16, 64, 1000))]
        else:
            del result[place:]
    return bytes(result)
