"""A harness for xllamacpp: llama.cpp's own server, in the process.

    python xllamacpp_py.py MODELS

MODELS has a GGUF file for each model of the suite. Texts of tiny-chat and vectors of tiny-embed are
from the same weights in F32, because llama.cpp rounds activations before it multiplies them with
quantized weights.
"""

import json
import sys
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import xllamacpp
from protocol import Skip, greedy_only, serve

MODELS = Path(sys.argv[1])
EXACT = {"tiny-chat": "tiny-chat-F32", "tiny-embed": "tiny-embed-F32"}
ENCODERS = ("tiny-embed", "tiny-embed-F32", "all-minilm-l6-v2")


@cache
def server(model):
    """Return the server of a model."""
    file = MODELS / f"{model}.gguf"
    if not file.exists():
        raise Skip(f"there is no file of {model}")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.cpuparams.n_threads, params.warmup = 1, 1, False
    params.embedding = model in ENCODERS
    # Flash attention rounds keys and values to float16.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def post(model, route, body):
    """Return the answer to a request."""
    url = server(model).listening_address + route
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def tokenizer(asked):
    """Return the ids of a text, and the text of the ids that are not special."""
    body = {"content": asked["text"], "add_special": True, "parse_special": True}
    ids = post(asked["model"], "/tokenize", body)["tokens"]
    # /detokenize spells special tokens, and leaves the added space.
    n_special = 5 if asked["model"] in ENCODERS else 3
    plain = {"tokens": [each for each in ids if each >= n_special]}
    return {
        "ids": ids,
        "text": post(asked["model"], "/detokenize", plain)["content"].removeprefix(" "),
    }


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params)
    body = {
        "prompt": asked["prompt"],
        "n_predict": params["max_tokens"],
        "temperature": 0.0,
        "repeat_penalty": params["repeat_penalty"],
        "repeat_last_n": params["repeat_penalty_last_n_token_count"],
        "return_tokens": True,
        "cache_prompt": False,
    }
    answer = post(EXACT.get(asked["model"], asked["model"]), "/completion", body)
    counts = {
        "prompt_token_count": answer["tokens_evaluated"],
        "generated_token_count": answer["tokens_predicted"],
    }
    return {"text": answer["content"], "usage": counts, "token_ids": answer["tokens"]}


def embeddings(asked):
    """Return a vector for each text."""
    if "max_tokens" in asked:
        raise Skip("it refuses a text that is too long")
    if not asked["texts"]:
        return {"embeddings": [], "usage": {"prompt_token_count": 0}}
    model = EXACT.get(asked["model"], asked["model"])
    try:
        answer = post(model, "/v1/embeddings", {"input": asked["texts"]})
    except urllib.error.HTTPError as error:  # an error of the interface is a result
        return {"error": {"kind": "runtime-error", "message": error.read().decode()}}
    vectors = [one["embedding"] for one in answer["data"]]
    n_tokens = answer["usage"]["prompt_tokens"]
    return {"embeddings": vectors, "usage": {"prompt_token_count": n_tokens}}


serve(["xllamacpp"], {"tokenizer": tokenizer, "text": text, "embeddings": embeddings})
