"""Right values of GGUF files of architecture "bert", by llama.cpp.

    python -m tools.peer_values.bert_gguf    writes tests/support/peer_values/bert_gguf.json

The first four numbers of each text's mean-pooled vector, divided by its length, are recorded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from llama_cpp import Llama

from tests.support.encoder_cases import GGUF_CASES, GGUF_TEXTS, GgufCase
from tools.peer_values import write_peer_values


def vectors(case: GgufCase, folder: Path) -> list[list[float]]:
    """Return the first numbers of each text's vector."""
    path = case.write(folder / "model.gguf")
    model = Llama(str(path), embedding=True, n_ctx=64, verbose=False)
    return [[round(x, 6) for x in model.embed(text, normalize=True)[:4]] for text in GGUF_TEXTS]


def main() -> None:
    """Write the file."""
    cases: dict[str, object] = {}
    for name, case in GGUF_CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = vectors(case, Path(folder))
    write_peer_values("bert_gguf", packages=("llama-cpp-python",), cases=cases)


if __name__ == "__main__":
    main()
