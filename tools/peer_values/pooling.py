"""What sentence-transformers and llama.cpp make of the cases of tests/support/sentence_folders.py.

    python -m tools.peer_values.pooling

For each case the width of the vectors, their lengths, and some of their numbers.
tests/support/peer_values/pooling_gguf.json has llama.cpp's, by the file's pooling type.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import Llama
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tests.support.model_files import tiny_bert_gguf
from tests.support.sentence_folders import CASES, GGUF_KEYS, GGUF_TEXTS, TEXTS, recorded_places
from tools.peer_values import write_peer_values

__all__ = ["main"]


def main() -> None:
    """Compute every case and write both files."""
    found: dict[str, object] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = case.write(Path(folder) / "model")
            model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
            vectors = np.asarray(
                model.encode(
                    list(TEXTS),
                    prompt_name=case.options.get("prompt_name"),
                    prompt=case.options.get("prompt"),
                )
            )  # [N, K]
        found[name] = recorded(vectors)
    write_peer_values(
        "pooling", packages=["sentence-transformers", "transformers", "torch"], cases=found
    )
    by_type: dict[str, object] = {}
    for pooling_type in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            keys = {**GGUF_KEYS, "bert.pooling_type": pooling_type}
            path = tiny_bert_gguf(Path(folder) / "model.gguf", metadata=keys)
            llama = Llama(str(path), embedding=True, n_ctx=64, verbose=False)
            embedded = [llama.embed(text, normalize=True) for text in GGUF_TEXTS]  # [N, K]
        by_type[str(pooling_type)] = recorded(np.array(embedded))
    write_peer_values("pooling_gguf", packages=["llama-cpp-python"], cases=by_type)


def recorded(vectors: NDArray[np.floating]) -> dict[str, object]:
    """Return what the file has of vectors, [N, K]."""
    places = recorded_places(vectors.shape[1])
    return {
        "width": vectors.shape[1],
        "lengths": [float(f"{np.linalg.norm(vector):.7g}") for vector in vectors],
        "numbers": [[float(f"{vector[place]:.7g}") for place in places] for vector in vectors],
    }


if __name__ == "__main__":
    main()
