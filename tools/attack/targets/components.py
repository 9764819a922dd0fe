"""WebAssembly components: damaged, and small ones made by chance."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from refllm.api import InvalidInput, LlmRuntimeError
from tools.attack.mutate import damaged_bytes
from tools.attack.target import Input, Target
from tools.attack.wat import PROGRAMS, random_component

if TYPE_CHECKING:
    from refllm.wasm.host import Host

__all__ = ["TARGET"]

DAMAGED = 0.6  # of the inputs; the others are components made by chance
LIMITS = {"memory_bytes": 2**24, "seconds": 0.3}


class _NoEngine:
    """Has no model."""

    def infer(self, model: str, *_: object) -> None:
        raise InvalidInput(f"there is no {model!r:.80}")

    generate_embeddings = infer


@functools.cache
def _host(cache: Path) -> Host:
    """The host; `cache` is for machine code, which does not belong among the user's."""
    from refllm.wasm.guest import Limits
    from refllm.wasm.host import Host

    os.environ["REFLLM_CACHE_DIR"] = str(cache)
    return Host(Limits(**LIMITS)).__enter__()  # type: ignore[arg-type]


@functools.cache
def _programs() -> list[bytes]:
    from wasmtime import wat2wasm

    return [bytes(wat2wasm(text)) for text in PROGRAMS]


def _prepare(folder: Path) -> None:
    path = folder / "app.wasm"
    path.write_bytes(_programs()[0])
    with suppress(LlmRuntimeError):
        _read(Input(path, 0))


def _build(random: Random, folder: Path) -> Input:
    from wasmtime import WasmtimeError, wat2wasm

    if random.random() < DAMAGED:
        wasm = damaged_bytes(random, random.choice(_programs()))
    else:
        text = random_component(random)
        try:
            wasm = bytes(wat2wasm(text))
        except WasmtimeError:  # numbers that no memory has
            wasm = text.encode()
    path = folder / "app.wasm"
    path.write_bytes(wasm)
    return Input(path, len(wasm))


def _read(given: Input) -> bytes:
    from refllm.wasm.guest import GuestFailed
    from refllm.wasm.host import Services
    from refllm.wasm.wasi.http import Request

    host = _host(given.value.parents[1] / "cache")
    program = host.load_handler(given.value)
    try:
        response = host.respond(program, Request("GET", "/"), Services(_NoEngine()))  # type: ignore[arg-type]
    except GuestFailed as error:
        if "this is a bug in refllm" in str(error):
            raise
        raise LlmRuntimeError(f"the guest failed: {error}") from error
    return repr(response).encode()


TARGET = Target(
    name="components",
    what="WebAssembly components",
    weight=10,
    build=_build,
    read=_read,
    prepare=_prepare,
)
