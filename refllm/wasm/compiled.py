"""Components as machine code, kept on disk: compiling takes seconds, loading a tenth of one.

    <cache>/components/4be0a1….cwasm    hash of the component, wasmtime's version, and its settings

where <cache> is the folder that `refllm.jit.disk_cache` finds. As with kernels, a file is loaded if
it was written for this component, and by no other user. wasmtime refuses code of another version or
for another CPU. Without such a folder each process compiles.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
from importlib.metadata import version
from pathlib import Path

from wasmtime import Config, Engine, WasmtimeError
from wasmtime.component import Component

from refllm.errors import LlmRuntimeError
from refllm.files.private import NotPrivateError, private_folder, read_kept, write_kept
from refllm.jit.disk_cache import cache_folder, kernel_sources, warn_of

__all__ = ["causes", "compiled", "engine_with_limits", "folder_of_kept"]

COMPONENT_LAYER = bytes((0x0D, 0x00, 0x01, 0x00))  # where a core module has 01 00 00 00
WASI_1 = b"wasi_snapshot_preview1"  # what a core module for WASI 0.1 imports from

MAX_BYTES = 512 * 1024 * 1024  # of a component; one with CPython in it has 38 MB

SETTINGS = "epochs, no gc, no exceptions"
"""What `engine_with_limits` sets: wasmtime refuses code that was compiled with other settings."""

logger = logging.getLogger(__name__)


def engine_with_limits() -> Engine:
    """Return an engine whose guests can be interrupted, and have no memory that is not counted.

    As in Spin without --experimental-wasm-feature, there is no heap of garbage-collected values,
    which wasmtime does not count as memory, and there are no exceptions, which are in that heap.
    """
    config = Config()
    config.epoch_interruption = True
    config.wasm_gc = False
    config.wasm_exceptions = False
    return Engine(config)


def compiled(engine: Engine, path: Path) -> Component:
    """Return the component in a file, from the cache if it is there.

    Raises:
        LlmRuntimeError: Names the file, which cannot be read or is not a component.
    """
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise LlmRuntimeError(f"{path}: is no regular file")
        if status.st_size > MAX_BYTES:
            raise LlmRuntimeError(f"{path}: is longer than {MAX_BYTES} bytes")
        wasm = path.read_bytes()
    except (OSError, ValueError) as error:  # the second for a zero byte in its name
        reason = getattr(error, "strerror", None) or error
        raise LlmRuntimeError(f"{path}: cannot be read: {reason}") from error
    _check_is_component(path, wasm)
    kept = _kept_at(wasm)
    component = None if kept is None else _read(engine, kept)
    if component is not None:
        return component
    logger.info("refllm: compiling %s …", path.name)
    try:
        component = Component(engine, wasm)
    except WasmtimeError as error:
        raise LlmRuntimeError(
            f"{path}: is not a component that can run here: {causes(str(error))}"
        ) from error
    if kept is not None:
        with contextlib.suppress(OSError):  # a full disk only makes the next start slow
            write_kept(kept, kept.name, bytes(component.serialize()))
    return component


def causes(error: str) -> str:
    """Return an error of wasmtime, with its causes, in one line."""
    lines = [re.sub(r"^\d+: ", "", line.strip()) for line in error.splitlines()]
    return "; ".join(line for line in lines if line and line != "Caused by:")


def _check_is_component(path: Path, wasm: bytes) -> None:
    if not wasm.startswith(b"\0asm"):
        raise LlmRuntimeError(f"{path}: is not WebAssembly; build the application first")
    if wasm[4:8] != COMPONENT_LAYER:
        problem = f"{path}: is a core module, not a component"
        if WASI_1 in wasm:
            raise LlmRuntimeError(
                f"{problem}: it is for WASI 0.1",
                "in Rust: build it for the target wasm32-wasip2",
                "in Go, by TinyGo: have Spin run it, with refllm serve for its models",
            )
        raise LlmRuntimeError(
            problem,
            f"wasm-tools component new {path.name} -o component.wasm, or build it with an SDK of "
            "Spin 2 or later",
        )


def _kept_at(wasm: bytes) -> Path | None:
    folder = folder_of_kept()
    if folder is None:
        return None
    compiler = f"wasmtime {version('wasmtime')} {SETTINGS} "
    return folder / f"{hashlib.sha256(compiler.encode() + wasm).hexdigest()[:32]}.cwasm"


def folder_of_kept() -> Path | None:
    """Return the cache's folder of components; None if there is none that is private."""
    kernels = cache_folder(os.environ, kernel_sources())
    if kernels is None:
        return None
    try:
        return private_folder(kernels.parent / "components")
    except NotPrivateError as error:
        warn_of(error)
    except OSError as error:
        logger.debug("no folder keeps compiled components: %s", error)
    return None


def _read(engine: Engine, path: Path) -> Component | None:
    code = read_kept(path, path.name)
    if code is None:
        return None
    try:
        return Component.deserialize(engine, code)
    except WasmtimeError:
        return None
