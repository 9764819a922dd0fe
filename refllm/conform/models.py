"""The models that the golden suite asks for, by name.

    tiny-chat, tiny-embed            ship with refllm
    tiny-chat-F32, tiny-chat-Q4_0 …  are tiny-chat with its matrices in another type, made here
    all-minilm-l6-v2, stories260K    are of other authors; used where a user has put them

A made model is kept in a folder whose name is a hash of everything that decides its bytes:

    <folder>/9f3c0a6be41d7258/tiny-chat-Q4_0.gguf
    <folder>/9f3c0a6be41d7258/tiny-chat-Q4_0.gguf.sha256

so a change of tiny-chat or of the quantizer makes it again. That folder is a root as
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
    """Return the file, or the folder with safetensors, of the model called `name`.

    Args:
        name: One of `MODEL_NAMES`.
        folder: Where made models are kept.
        roots: Where models of other authors are looked for, by default refllm's own roots.

    Returns:
        The path; None for a model of another author that is in none of the roots.

    Raises:
        InvalidInput: For another name.
        LlmRuntimeError: Where `folder` cannot be written.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if name in MADE:
        return _made(name, folder)
    if name not in ELSEWHERE:
        raise InvalidInput(f"the suite has no model {name!r:.80}; it has {', '.join(MODEL_NAMES)}")
    try:
        return find_model(name, default_roots() if roots is None else roots)
    except (InvalidInput, ModelNotSupported):
        return None


def is_shipped_or_made(name: str) -> bool:
    """Return whether the model is there on every machine."""
    return name in SHIPPED or name in MADE


def model_sha256s(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that ships or is made, by the model's name.

    Raises:
        LlmRuntimeError: Where `folder`, in which models are made, cannot be written.
    """
    paths = {**SHIPPED, **{name: _made(name, folder) for name in MADE}}
    return {name: _sha256(path) for name, path in paths.items()}


def _made(name: str, folder: Path) -> Path:
    target = folder / _recipe() / f"{name}.gguf"
    checksum = target.with_name(f"{target.name}.sha256")
    for path in (target, checksum):
        clear_leftovers(path)
    try:
        is_whole = target.is_file() and checksum.is_file()
        if is_whole:
            digest = checksum.read_text(encoding="ascii", errors="replace").strip()
            is_whole = _sha256(target) == digest
        if not is_whole:
            _make(target, checksum, MADE[name])
    except OSError as error:
        raise LlmRuntimeError(f"{target}: {error.strerror or error}") from error
    return target


def _make(target: Path, checksum: Path, type_name: str) -> None:
    """Write the model, then its checksum, each by a rename; the last of several processes wins."""
    with whole_file(target, parents=True) as unfinished:
        write_gguf(describe(SOURCE), unfinished, name=target.stem, type_name=type_name)
        digest = _sha256(unfinished)
    with whole_file(checksum) as unfinished:
        unfinished.write_text(f"{digest}\n", encoding="ascii", newline="\n")


def _recipe() -> str:
    """Return a hash of tiny-chat and of all that quantizes it, 16 hexadecimal digits."""
    package = Path(refllm.__file__).parent
    files = sorted(path for pattern in RECIPE for path in package.glob(pattern))
    digests = [_sha256(path) for path in (SOURCE, *files)]
    versions = [f"{package} {version(package)}" for package in RECIPE_PACKAGES]
    return hashlib.sha256("\n".join([*digests, *versions]).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
