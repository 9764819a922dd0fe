"""A harness for mistral.rs: llamas of GGUF files in Rust, with a tokenizer.json.

    python mistralrs_py.py GGUF HF

GGUF has a file for each model of the suite, HF a folder with the tokenizer.json. Without that, the
vocabulary of the GGUF file would be read as another kind of tokenizer. Texts of tiny-chat are
written from the same weights in F32.
"""

import sys
from functools import cache
from pathlib import Path

from mistralrs import CompletionRequest, Runner, Which
from protocol import Skip, greedy_only, serve

GGUF, HF = map(Path, sys.argv[1:])
EXACT = {"tiny-chat": "tiny-chat-F32"}


@cache
def loaded(model):
    """Return a model."""
    words = HF / "tiny-chat" / "tokenizer.json"
    file = Which.GGUF(str(GGUF), f"{model}.gguf", tokenizer_json=str(words))
    return Runner(which=file, no_paged_attn=True, prefix_cache_n=0)


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params)
    penalty, window = params["repeat_penalty"], params["repeat_penalty_last_n_token_count"]
    if penalty != 1.0 and window > 0:
        raise Skip("its repetition penalty has no window")
    if params["max_tokens"] == 0:
        raise Skip("it refuses max_tokens 0")
    request = CompletionRequest(
        asked["prompt"], "default", max_tokens=params["max_tokens"], temperature=0.0
    )
    answer = loaded(EXACT.get(asked["model"], asked["model"])).send_completion_request(request)
    counts = {
        "prompt_token_count": answer.usage.prompt_tokens,
        "generated_token_count": answer.usage.completion_tokens,
    }
    return {"text": answer.choices[0].text, "usage": counts}


serve(["mistralrs"], {"text": text})
