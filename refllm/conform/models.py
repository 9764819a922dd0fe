"""The models that the golden suite asks for, by name.

    tiny-chat, tiny-embed            ship with refllm
    tiny-chat-F32, tiny-chat-Q4_0 …  are tiny-chat with its matrices in another type, made here
    all-minilm-l6-v2, stories260K    are somebody else's, and here only where somebody put them

A made model is kept in a folder that is named after everything that decides its bytes:

    <folder>/9f3c0a6be41d7258/tiny-chat-Q4_0.gguf
    <folder>/9f3c0a6be41d7258/tiny-chat-Q4_0.gguf.sha256

so another tiny-chat, or another quantizer, makes it anew. That folder is a root as
`refllm.models.find` describes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import refllm
from refllm.errors import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.export.gguf import write_gguf
from refllm.export.model import describe
from refllm.files.whole import clear_leftovers, whole_file
from refllm.ggml.encode import QUANTIZABLE
from refllm.models import bundled
from refllm.models.find import default_roots, find_model

__all__ = ["MODEL_NAMES", "is_shipped_or_made", "model_sha256s", "suite_model"]

SHIPPED: Mapping[str, Path] = {
    "tiny-chat": bundled.ROOT / "llama" / "tiny-chat.gguf",
    "tiny-embed": bundled.ROOT / "bert" / "tiny-embed.gguf",
}
SOURCE = SHIPPED["tiny-chat"]
# tiny-chat itself is Q8_0.
MADE: Mapping[str, str] = {
    f"tiny-chat-{type_name}": type_name for type_name in QUANTIZABLE if type_name != "Q8_0"
}
ELSEWHERE = ("all-minilm-l6-v2", "stories260K")

MODEL_NAMES: tuple[str, ...] = (*SHIPPED, *MADE, *ELSEWHERE)
"""Every model that a case may name."""

# What decides how tiny-chat is quantized, besides tiny-chat.
RECIPE = ("quant.py", "ggml/*.py", "export/gguf.py", "checkpoints/gguf_writer.py")
RECIPE_PACKAGES = ("gguf", "numpy")


def suite_model(name: str, folder: Path, *, roots: Sequence[Path] | None = None) -> Path | None:
    """The file, or the folder with safetensors, of the model called `name`.

    Made models are kept in `folder`. None for a model that is not refllm's and lies in none of
    `roots`, by default refllm's own.
    Errors: `InvalidInput` for another name, `LlmRuntimeError` where `folder` cannot be written.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if name in MADE:
        return _made(name, folder)
    if name in ELSEWHERE:
        return _found(name, default_roots() if roots is None else roots)
    raise InvalidInput(f"the suite has no model {name!r:.80}; it has {', '.join(MODEL_NAMES)}")


def is_shipped_or_made(name: str) -> bool:
    """Whether the model is there on every machine."""
    return name in SHIPPED or name in MADE


def model_sha256s(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that ships or is made, by the model's name.

    Errors: as `suite_model`.
    """
    paths = {**SHIPPED, **{name: _made(name, folder) for name in MADE}}
    return {name: _sha256(path) for name, path in paths.items()}


def _made(name: str, folder: Path) -> Path:
    target = folder / _recipe() / f"{name}.gguf"
    checksum = target.with_name(f"{target.name}.sha256")
    for path in (target, checksum):
        clear_leftovers(path)
    try:
        if not (target.is_file() and checksum.is_file() and _is_whole(target, checksum)):
            _make(target, checksum, MADE[name])
    except OSError as error:
        raise LlmRuntimeError(f"{target}: {error.strerror or error}") from error
    return target


def _make(target: Path, checksum: Path, type_name: str) -> None:
    """Let the model appear whole, and then its checksum; the last of several processes wins."""
    with whole_file(target, parents=True) as unfinished:
        write_gguf(describe(SOURCE), unfinished, name=target.stem, type_name=type_name)
        digest = _sha256(unfinished)
    with whole_file(checksum) as unfinished:
        unfinished.write_text(f"{digest}\n", encoding="ascii", newline="\n")


def _is_whole(path: Path, checksum: Path) -> bool:
    return _sha256(path) == checksum.read_text(encoding="ascii", errors="replace").strip()


def _recipe() -> str:
    """A hash of tiny-chat and of all that quantizes it, 16 hexadecimal digits."""
    package = Path(refllm.__file__).parent
    files = sorted(path for pattern in RECIPE for path in package.glob(pattern))
    digests = [_sha256(path) for path in (SOURCE, *files)]
    versions = [f"{package} {version(package)}" for package in RECIPE_PACKAGES]
    return hashlib.sha256("\n".join([*digests, *versions]).encode()).hexdigest()[:16]


def _found(name: str, roots: Sequence[Path]) -> Path | None:
    try:
        return find_model(name, roots)
    except (InvalidInput, ModelNotSupported):
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
