"""A target whose inputs do everything that an input must not do, for tests of `tools.attack`."""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from random import Random

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from tools.attack.target import Input, NotFinite, Target

__all__ = ["BEHAVIORS", "STUB"]

BEHAVIORS = (
    *("returns", "refuses", "names what is damaged", "names what is invalid", "writes a file"),
    *("raises", "is not finite", "prints", "changes", "breaks the second time", "takes memory"),
    *("takes time", "ends the process", "never ends"),
)
MAX_BYTES = 20_000_000

calls = itertools.count()
seen = set[str]()


def _build(random: Random, folder: Path) -> Input:
    behavior = random.choice(BEHAVIORS)
    if behavior == "writes a file":
        assert not [*folder.iterdir()]
        (folder / "a").write_bytes(b"1")
    return Input((behavior, folder), 1)


def _read(given: Input) -> bytes:
    behavior, folder = given.value
    match behavior:
        case "refuses":
            raise ModelNotSupported("no")
        case "names what is damaged":
            raise LlmRuntimeError("damaged")
        case "names what is invalid":
            raise InvalidInput("invalid")
        case "writes a file":
            return bytes((folder / "a").read_bytes())
        case "raises":
            raise ZeroDivisionError("a fault")
        case "is not finite":
            raise NotFinite("one number")
        case "prints":
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"a panic")
        case "changes":
            return b"%d" % next(calls)
        case "breaks the second time":
            if behavior in seen:
                raise LlmRuntimeError("broken")
            seen.add(behavior)
        case "takes memory":
            return b"%d" % len(b"1" * 3 * MAX_BYTES)
        case "takes time":
            until = time.process_time() + 0.25
            while time.process_time() < until:
                pass
        case "ends the process":
            os._exit(3)
        case "never ends":
            time.sleep(1000)
    return b"1"


STUB = Target(
    name="stub",
    what="stubs",
    weight=1,
    build=_build,
    read=_read,
    max_seconds=0.15,
    spare_bytes=MAX_BYTES,
)
