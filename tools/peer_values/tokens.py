"""Token ids by transformers and llama.cpp, of the tokenizers in `tests.support.token_cases`.

    python -m tools.peer_values.tokens    writes tests/support/peer_values/tokens.json

For a folder: the ids of each text by AutoTokenizer, and its special tokens. For a GGUF file: the
ids of each text by llama.cpp with BOS and special tokens, every token that ends a generation, and
the text that some tokens write where special tokens are not shown.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gguf import GGUFWriter

from tests.support.token_cases import (
    FOLDERS,
    GGUFS,
    TEXTS,
    WORD_RULES,
    WORD_TEXTS,
    words_metadata,
    write_folder,
)
from tools.gguf_files import add_metadata
from tools.peer_values import write_peer_values

__all__ = ["main"]

FIRST, LAST = 14, 8  # how many tokens at both ends are shown: special ones, bytes, what cases add


def main() -> None:
    """Write the file."""
    cases = {name: by_transformers(files) for name, files in FOLDERS.items()}
    cases |= {name: by_llama_cpp(make()) for name, make in GGUFS.items()}
    cases |= {
        f"words: {pre}": {"ids": by_llama_cpp(words_metadata(pre), texts=WORD_TEXTS)["ids"]}
        for pre in WORD_RULES
    }
    write_peer_values("tokens", packages=["transformers", "llama-cpp-python"], cases=cases)


def by_transformers(files: Mapping[str, object]) -> dict[str, object]:
    """Return the ids of each text, and the special tokens by name."""
    transformers = importlib.import_module("transformers")
    with TemporaryDirectory() as folder:
        write_folder(Path(folder), files)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return {
            "class": type(tokenizer).__name__,
            "ids": [list(tokenizer(text)["input_ids"]) for text in TEXTS],
            "special_tokens": {
                name: str(token)
                for name, token in tokenizer.special_tokens_map.items()
                if isinstance(token, str)
            },
        }


def by_llama_cpp(metadata: Mapping[str, Any], *, texts: Sequence[str] = TEXTS) -> dict[str, object]:
    """Return the ids of each text, the tokens that end a generation, and what tokens write."""
    llama_cpp = importlib.import_module("llama_cpp")
    with TemporaryDirectory() as folder, silence():
        path = Path(folder) / "vocabulary.gguf"
        writer = GGUFWriter(path, arch="llama")
        charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
        others = {k: v for k, v in metadata.items() if v is not charsmap}
        add_metadata(writer, others)
        if charsmap is not None:
            writer.add_precompiled_charsmap(bytes(charsmap))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        vocab = llama_cpp.llama_model_get_vocab(model.model)
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        buffer = ctypes.create_string_buffer(256)
        writes = {}
        for token_id in (i for i in range(n_vocab) if i < FIRST or i >= n_vocab - LAST):
            size = llama_cpp.llama_token_to_piece(vocab, token_id, buffer, 256, 0, False)
            writes[str(token_id)] = buffer.raw[:size].decode("latin-1")
        return {
            "ids": [model.tokenize(text.encode(), special=True) for text in texts],
            "ends": [i for i in range(n_vocab) if llama_cpp.llama_vocab_is_eog(vocab, i)],
            "writes": writes,
        }


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """llama.cpp writes to the process's standard error."""
    with Path(os.devnull).open("w") as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


if __name__ == "__main__":
    main()
