"""Models for guests: the ones that ship with the package, and small random ones beside them."""

from __future__ import annotations

from pathlib import Path

from refllm import embedded
from tests.model_files import tiny_bert_folder, tiny_llama_gguf

__all__ = ["model_roots"]


def model_roots(folder: Path) -> tuple[Path, ...]:
    """Roots with tiny-chat, tiny-embed, llama2-chat, and the damaged model broken-chat."""
    llama = folder / "llama"
    llama.mkdir(parents=True)
    (folder / "bert").mkdir()
    tiny_llama_gguf(llama / "tiny-chat.gguf")
    tiny_llama_gguf(llama / "llama2-chat.gguf", seed=1)
    tiny_bert_folder(folder / "bert" / "tiny-embed")
    (llama / "broken-chat.gguf").write_bytes(b"GGUF")
    return embedded.ROOT, folder
