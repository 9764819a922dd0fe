"""How far refllm's logits are from llama.cpp's, teacher-forced over 200 tokens.

    python tools/compare_with_llama_cpp.py peer MODEL.gguf LOGITS.npy      where llama_cpp is
    python tools/compare_with_llama_cpp.py compare MODEL.gguf LOGITS.npy   where refllm is

The first writes llama.cpp's logits (through llama-cpp-python, KV cache float32), the second prints
for each numerics the largest difference of a logit and the share of equal argmax. The tokens are
the same on both sides: BOS, then a fixed pseudo-random walk through the vocabulary.

V vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_TOKENS = 200
GGML_TYPE_F32 = 0


def token_ids(n_vocab: int) -> list[int]:
    """BOS and 199 ordinary tokens: a linear congruential sequence above the byte tokens."""
    ids, state = [1], 1
    while len(ids) < N_TOKENS:
        state = (state * 1103515245 + 12345) % 2**31
        ids.append(259 + (state >> 8) % (n_vocab - 259))
    return ids


def peer_logits(model: Path) -> NDArray[np.float32]:
    """llama.cpp's logits after each token, [200, V]."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(model),
        n_ctx=256,
        n_batch=1,
        n_threads=2,
        logits_all=True,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )
    llama.eval(token_ids(llama.n_vocab()))
    return np.array(llama.scores[:N_TOKENS], np.float32)


def own_logits(model: Path, numerics: str) -> NDArray[np.float32]:
    """refllm's logits after each token, [200, V]."""
    from refllm.models.load import LlamaModel, load_path

    llama = load_path(model, numerics=numerics)
    if not isinstance(llama, LlamaModel):
        raise SystemExit(f"{model} is not a llama")
    return llama.forward(token_ids(llama.config.n_vocab))


def main() -> None:
    """Write the peer's logits, or print a table row for each numerics."""
    role, model, logits = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if role == "peer":
        np.save(logits, peer_logits(model))
        return
    theirs = np.load(logits).astype(np.float64)
    print(f"{model.name}: logits up to {np.abs(theirs).max():.2f}")
    for numerics in ("exact", "int8"):
        ours = own_logits(model, numerics)
        largest = np.abs(ours - theirs).max()
        equal = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
        print(f"| {numerics} | {largest:.3g} | {equal:.1%} |")


if __name__ == "__main__":
    main()
