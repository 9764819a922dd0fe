"""A harness for gpt4all: its own copy of llama.cpp, of 2024.

    python gpt4all_py.py GGUF HF

GGUF has a file for each model of the suite, HF a folder with the tokenizer.json, by which tokens
are counted. Texts of tiny-chat are written from the same weights in
F32, because llama.cpp rounds activations before it multiplies them with quantized weights.
"""

import sys
from functools import cache
from pathlib import Path

from gpt4all import GPT4All
from protocol import Skip, counted, greedy_only, serve
from tokenizers import Tokenizer

GGUF, HF = map(Path, sys.argv[1:])
EXACT = {"tiny-chat": "tiny-chat-F32"}


@cache
def loaded(model):
    """Return a model."""
    name = f"{EXACT.get(model, model)}.gguf"
    options = {"allow_download": False, "n_ctx": 512, "n_threads": 1, "device": "cpu"}
    return GPT4All(name, model_path=GGUF, **options)


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params)
    if params["max_tokens"] == 0:
        raise Skip("it refuses max_tokens 0")
    penalty = {
        "repeat_penalty": params["repeat_penalty"],
        "repeat_last_n": params["repeat_penalty_last_n_token_count"],
    }
    written = loaded(asked["model"]).generate(
        asked["prompt"], max_tokens=params["max_tokens"], temp=0.0, top_k=1, **penalty
    )
    own = Tokenizer.from_file(str(HF / "tiny-chat" / "tokenizer.json"))
    usage = counted(own, asked["prompt"], written, params["max_tokens"])
    return {"text": written, "usage": usage}


serve(["gpt4all", "tokenizers"], {"text": text})
