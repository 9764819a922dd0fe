"""Components of WASI 0.3, as jco transpiles them for Node: wasmtime's Python bindings run none.

    <cache>/components/0f3d2c….jco/    app.js and core modules, by jco's version and the component

jco and its shim of WASI 0.3 are packages of npm. They are looked for in the folder of the
application, in the current one, and in those above them, as Node looks for packages; Node itself
may be such a package, too. `wasi3.mjs` runs what comes of it.

Source: https://github.com/bytecodealliance/jco.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refllm.errors import LlmRuntimeError
from refllm.wasm.compiled import folder_of_kept
from refllm.wasm.guest import Limits

__all__ = ["HOW_TO_GET_JCO", "Tools", "command_of", "tools_for", "transpiled"]

JCO = Path("node_modules", "@bytecodealliance", "jco")
SHIM = Path("node_modules", "@bytecodealliance", "preview3-shim")
MIN_NODE = 26  # the first without a flag for WebAssembly's promises
HOW_TO_GET_JCO = (
    "to have Node run it, in the application's folder: npm install @bytecodealliance/jco@1.35.0 "
    f"@bytecodealliance/preview3-shim@0.7.0 node@{MIN_NODE}"
)
OPTIONS = ["--name", "app", "--async-mode", "jspi", "--instantiation", "async", "--no-typescript"]
SECONDS = 300.0  # to transpile a component; one with CPython in it takes 5
PAGE_BYTES = 64 * 1024
HEAP_MEBIBYTES = 1024  # of JavaScript's objects
PROGRAM = Path(__file__).with_name("wasi3.mjs")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What runs a component of WASI 0.3.

    Attributes:
        node: The program.
        folder: Has the packages in its node_modules.
        version: jco's and its shim's.
    """

    node: str
    folder: Path
    version: str


def tools_for(path: Path) -> Tools | None:
    """Return what runs the component at `path`; None if a package, or a Node, is not there."""
    for folder in _folders(path):
        try:
            versions = [
                json.loads((folder / package / "package.json").read_text("utf-8"))["version"]
                for package in (JCO, SHIM)
            ]
        except (OSError, ValueError, KeyError):
            continue
        for node in (folder / "node_modules" / ".bin" / "node", shutil.which("node")):
            if node is not None and _major_version(str(node)) >= MIN_NODE:
                return Tools(str(node), folder, "-".join(map(str, versions)))
    return None


def transpiled(tools: Tools, path: Path) -> Path:
    """Return the folder with what jco makes of a component, made now or earlier.

    Raises:
        LlmRuntimeError: Names the component; jco cannot transpile it.
    """
    try:
        maker = f"jco {tools.version} {OPTIONS} "
        key = hashlib.sha256(maker.encode() + path.read_bytes()).hexdigest()[:32]
        parent = folder_of_kept() or _folder_of_this_process()
        kept = parent / f"{key}.jco"
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as unfinished:
                made = Path(unfinished, "component")
                _transpile(tools, path, made)
                try:
                    made.rename(kept)
                except OSError:
                    if not kept.exists():  # otherwise another process was first
                        raise
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be transpiled: {error}") from error
    return kept


def command_of(tools: Tools, folder: Path, limits: Limits) -> list[str]:
    """Return the command of a process that runs a transpiled component."""
    return [
        tools.node,
        f"--wasm-max-mem-pages={max(1, limits.memory_bytes // PAGE_BYTES)}",
        f"--max-old-space-size={HEAP_MEBIBYTES}",
        *(str(PROGRAM), str(folder), str(tools.folder)),
    ]


def _folder_of_this_process() -> Path:
    """Return a folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="refllm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _transpile(tools: Tools, path: Path, made: Path) -> None:
    logger.info("refllm: transpiling %s …", path.name)
    command = [tools.node, str(tools.folder / "node_modules" / ".bin" / "jco"), "transpile"]
    try:
        done = subprocess.run(
            [*command, str(path.absolute()), "-o", str(made), *OPTIONS, "-q"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LlmRuntimeError(
            f"{path}: jco did not transpile it within {SECONDS:g} seconds"
        ) from error
    if done.returncode != 0 or not (made / "app.js").exists():
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        reason = next((line for line in lines if "rror" in line), "no reason is given")
        raise LlmRuntimeError(f"{path}: jco {tools.version} cannot transpile it: {reason:.300}")
    (made / "package.json").write_text('{"type": "module"}\n', "utf-8")


def _folders(path: Path) -> Iterator[Path]:
    for folder in dict.fromkeys([path.absolute().parent, Path.cwd()]):
        yield folder
        yield from folder.parents


def _major_version(node: str) -> int:
    try:
        done = subprocess.run(
            [node, "--version"], capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"v(\d+)\.", done.stdout)
    return int(found[1]) if found else 0
