"""A harness for rust-ai-serving-engine: candle, which reads GGUF files in Rust.

    python rust_ai_py.py GGUF HF

GGUF has a file for each model of the suite, HF a folder with the tokenizer.json, by
which tokens are counted, too. Texts of tiny-chat are written from the same weights in F32.
"""

import sys
from pathlib import Path

import rust_ai_serving_engine as engine
from protocol import Skip, counted, greedy_only, serve
from tokenizers import Tokenizer

GGUF, HF = map(Path, sys.argv[1:])
EXACT = {"tiny-chat": "tiny-chat-F32"}
TOKENIZER = HF / "tiny-chat" / "tokenizer.json"


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params, has_penalty=False)
    if params["max_tokens"] == 0:
        raise Skip("it refuses max_tokens 0")
    written = engine.generate_llama_gguf(
        str(GGUF / f"{EXACT.get(asked['model'], asked['model'])}.gguf"),
        str(TOKENIZER),
        asked["prompt"],
        max_tokens=params["max_tokens"],
        temperature=0.0,
        stop_tokens=[2],
        device="cpu",
    )
    own = Tokenizer.from_file(str(TOKENIZER))
    usage = counted(own, asked["prompt"], written, params["max_tokens"])
    return {"text": written, "usage": usage}


serve(["rust-ai-serving-engine", "tokenizers"], {"text": text})
