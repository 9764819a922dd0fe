"""What llama.cpp chooses after 50 prompts, for golden/text/llama.cpp.json.

    python -m tools.greedy_by_llama_cpp MODEL.gguf FILE.json

Needs llama-cpp-python and nothing of refllm's but the prompts. At each place the most likely token
is taken, and it and the runner-up are written down with their logits. Keys and values are float32;
activations are quantized to int8 before each product, as llama.cpp always does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import llama_cpp
import numpy as np

from tools.tiny_chat.corpus import held_out
from tools.tiny_chat.sample import prompt_of

# How many of each kind. Few are stories: at many of their places two words are nearly as likely,
# and there another engine's rounding may choose the other.
KINDS = {
    **{"told-story": 2, "fact": 8},
    **dict.fromkeys(("sentiment", "arithmetic", "greeting", "joke", "code"), 6),
}
PLAIN = (
    *("Once upon a time", "One day", "There was", "The", "12 + 5", "Hi 🙂", "Say hello."),
    *("Can you tell me a joke about cats", "Write a Python function that adds two numbers."),
    "You are a stand up comedy writer. Tell me a joke.",
)
SEED = 30_000
MAX_TOKENS = 24
N_CTX = 512


def main() -> None:
    """Write the file."""
    model, output = Path(sys.argv[1]), Path(sys.argv[2])
    engine = llama_cpp.Llama(
        str(model),
        n_ctx=N_CTX,
        n_threads=2,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    asked = [
        prompt_of(sample.question or "", system=sample.system)
        for kind, n in KINDS.items()
        for sample in held_out(kind, n, seed=SEED, known=())
    ]
    prompts = [*asked, *PLAIN]
    document = {
        "$schema": "llama.cpp.schema.json",
        "model": model.stem,
        "made_with": f"llama-cpp-python {llama_cpp.__version__}",
        "texts": [answer_to(prompt, engine) for prompt in prompts],
    }
    output.write_text(json.dumps(document) + "\n", encoding="ascii")


def answer_to(prompt: str, engine: llama_cpp.Llama) -> Mapping[str, object]:
    """One entry of the file."""
    prompt_ids = engine.tokenize(prompt.encode(), add_bos=True, special=False)
    engine.reset()
    engine.eval(prompt_ids)
    places: list[tuple[int, float, int, float]] = []
    while len(places) < MAX_TOKENS:
        logits = engine.scores[engine.n_tokens - 1]  # [V]
        second, first = (int(i) for i in np.argsort(logits, kind="stable")[-2:])
        places.append((first, _rounded(logits[first]), second, _rounded(logits[second])))
        if first == engine.token_eos():
            break
        engine.eval([first])
    first_ids, first_logits, second_ids, second_logits = zip(*places, strict=True)
    return {
        "prompt": prompt,
        "prompt_token_ids": prompt_ids,
        "token_ids": first_ids,
        "logits": first_logits,
        "runner_up_ids": second_ids,
        "runner_up_logits": second_logits,
    }


def _rounded(logit: np.float32) -> float:
    return round(float(logit), 5)


if __name__ == "__main__":
    main()
