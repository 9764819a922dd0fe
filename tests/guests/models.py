"""Models for guests: those that ship with the package, a random one, and a damaged one."""

from __future__ import annotations

from pathlib import Path

from refllm.models import bundled
from tests.support.model_files import tiny_llama_gguf

__all__ = ["model_roots"]


def model_roots(folder: Path) -> tuple[Path, ...]:
    """Roots with tiny-chat, tiny-embed, llama2-chat, and the damaged model broken-chat."""
    llama = folder / "llama"
    llama.mkdir(parents=True)
    tiny_llama_gguf(llama / "llama2-chat.gguf", seed=1)
    (llama / "broken-chat.gguf").write_bytes(b"GGUF")
    return bundled.ROOT, folder
