"""A harness for llama-cpp-python: llama.cpp, with its logits and its decoders of blocks.

    python llama_cpp_py.py GGUF

GGUF has a file for each model of the suite. Texts of tiny-chat and vectors of tiny-embed are from
the same weights in F32, because llama.cpp rounds activations before it multiplies them with
quantized weights. For the same reason its logits of quantized weights are those of int8 numerics.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np
from protocol import Skip, greedy_only, numbers, serve

GGUF = Path(sys.argv[1])
EXACT = {"tiny-chat": "tiny-chat-F32", "tiny-embed": "tiny-embed-F32"}
ENCODERS = ("tiny-embed", "tiny-embed-F32", "all-minilm-l6-v2")
FLOAT = ("tiny-chat-F32",)


class Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, as far as the function that decodes."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def traits():
    """Return what ggml has of each format, by its name in capital letters."""
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so"))))
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    known = (library.ggml_get_type_traits(number).contents for number in range(40))
    return {one.type_name.decode().upper(): one for one in known if one.type_name}


def quant(asked):
    """Return the values of blocks."""
    one = traits().get(asked["format"])
    if one is None or not one.to_float:
        raise Skip(f"it has no decoder for {asked['format']}")
    data, values = bytes.fromhex(asked["bytes"]), np.empty(asked["n"], np.float32)
    one.to_float(data, values.ctypes.data, asked["n"])
    return {"values": numbers(values)}


@cache
def loaded(model):
    """Return a model, which keeps its logits; keys and values are float32."""
    file = GGUF / f"{model}.gguf"
    if not file.exists():
        raise Skip(f"there is no file of {model}")
    options = {"embedding": True} if model in ENCODERS else {"logits_all": True}
    one_thread = {"n_threads": 1, "n_threads_batch": 1}
    float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(str(file), n_ctx=0, verbose=False, **one_thread, **float32, **options)


def tokenizer(asked):
    """Return the ids of a text, and the text of the ids."""
    own = loaded(asked["model"])
    ids = own.tokenize(asked["text"].encode(), special=True)
    return {"ids": ids, "text": own.detokenize(ids).decode()}


def logits(asked):
    """Return the scores of the next token, after each token."""
    if (asked["numerics"] == "exact") != (asked["model"] in FLOAT):
        raise Skip("its numerics of this file are others")
    own = loaded(asked["model"])
    own.reset()
    own.eval(asked["token_ids"])
    scores = own.scores[: len(asked["token_ids"])]  # [T, V]
    return {"logits": {"shape": list(scores.shape), "values": numbers(scores.ravel())}}


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params)
    window = params["repeat_penalty_last_n_token_count"]
    if params["repeat_penalty"] != 1.0 and window not in (0, 64):
        raise Skip("the window of its penalty is an option of the model")
    own = loaded(EXACT.get(asked["model"], asked["model"]))
    prompt, ids = own.tokenize(asked["prompt"].encode(), special=True), []
    limit = min(params["max_tokens"], own.n_ctx() - len(prompt) + 1)
    penalty = params["repeat_penalty"] if window else 1.0
    own.reset()
    tokens = own.generate(prompt, temp=0.0, repeat_penalty=penalty)
    while len(ids) < limit and own.token_eos() not in ids:
        ids.append(next(tokens))
    before = own.detokenize(prompt)
    written = own.detokenize(prompt + ids)[len(before) :].decode()
    counts = {"prompt_token_count": len(prompt), "generated_token_count": len(ids)}
    return {"text": written, "usage": counts, "token_ids": ids}


def embeddings(asked):
    """Return a vector for each text."""
    if "max_tokens" in asked:
        raise Skip("the limit is an option of the model")
    own = loaded(EXACT.get(asked["model"], asked["model"]))
    vectors, n_tokens = [], 0
    for one in asked["texts"]:
        [vector], count = own.embed([one], normalize=True, return_count=True)
        vectors.append(vector)
        n_tokens += count
    return {"embeddings": vectors, "usage": {"prompt_token_count": n_tokens}}


GROUPS = {
    "tokenizer": tokenizer,
    "quant": quant,
    "logits": logits,
    "text": text,
    "embeddings": embeddings,
}
serve(["llama-cpp-python", "numpy"], GROUPS)
