"""Logits of tiny llamas of every kind: of folders by transformers, of GGUF files by llama.cpp.

Run as `python -m tools.peer_values.llamas` where both are installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.llama_variants import FOLDERS, GGUFS, PROMPT, SAMPLED
from tools.peer_values import write_peer_values

__all__ = ["main"]

N_LOGITS = 6


def of_folder(path: Path) -> Any:
    """Return transformers' logits after each token of the prompt, [T, V]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def of_gguf(path: Path) -> Any:
    """Return llama.cpp's logits after each token of the prompt, [T, V], keys and values in F32."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path),
        n_ctx=128,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    model.eval(PROMPT)
    return np.array(model.scores[: len(PROMPT)], np.float32)


def main() -> None:
    """Write both topics."""
    for topic, variants, logits_of, packages in (
        ("llama_folders", FOLDERS, of_folder, ["transformers", "torch"]),
        ("llama_ggufs", GGUFS, of_gguf, ["llama-cpp-python"]),
    ):
        cases = {}
        for name, make in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                logits = logits_of(
                    make(Path(folder) / "tiny" if topic == "llama_folders" else Path(folder))
                )
            cases[name] = [
                [round(float(x), 6) for x in logits[place, :N_LOGITS]] for place in SAMPLED
            ]
        sys.stdout.write(f"{write_peer_values(topic, packages=packages, cases=cases)}\n")


if __name__ == "__main__":
    main()
