"""A harness for refllm conform: transformers for llamas, sentence-transformers for encoders.

refllm conform "python docs/harnesses/transformers_harness.py tiny-chat=FOLDER tiny-embed=FOLDER"

Each FOLDER answers for a model of the suite; it has config.json, tokenizer.json and safetensors.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer, __version__
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

FOLDERS = dict(given.split("=", 1) for given in sys.argv[1:])
HELLO = {
    "version": 1,
    "implementation": {
        "name": "transformers",
        "version": transformers.__version__,
        "language": "Python",
        "details": {"torch": torch.__version__, "sentence-transformers": __version__},
    },
    "groups": ["tokenizer", "logits", "text", "embeddings"],
}


class Skip(Exception):
    """The backend cannot be asked this; the text says why."""


# What is in a folder, loaded once.
tokenizer_in = cache(transformers.AutoTokenizer.from_pretrained)
llama_in = cache(transformers.AutoModelForCausalLM.from_pretrained)
encoder_in = cache(SentenceTransformer)


def answer(group: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The result of a case."""
    if asked["model"] not in FOLDERS:
        raise Skip(f"no folder was given for {asked['model']}")
    folder = FOLDERS[asked["model"]]
    with torch.inference_mode():
        if group == "embeddings":
            return embeddings(folder, asked)
        tokenizer = tokenizer_in(folder)
        if group == "tokenizer":
            ids = tokenizer(asked["text"])["input_ids"]
            return {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)}
        llama = llama_in(folder).float()
        return logits(llama, asked) if group == "logits" else text(llama, tokenizer, asked)


def logits(llama: Model, asked: dict[str, Any]) -> dict[str, Any]:
    """The scores of the next token, after each token."""
    if asked["numerics"] != "exact":
        raise Skip("activations are not quantized")
    scores = llama(torch.tensor([asked["token_ids"]])).logits[0]
    return {"logits": {"shape": list(scores.shape), "values": scores.flatten().tolist()}}


def text(llama: Model, tokenizer: Tokenizer, asked: dict[str, Any]) -> dict[str, Any]:
    """The most likely continuation of a prompt."""
    params, inputs = asked["params"], tokenizer(asked["prompt"], return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    last_n = params["repeat_penalty_last_n_token_count"]
    penalty = params["repeat_penalty"] if last_n > 0 else 1.0
    if params["temperature"] > 0:
        raise Skip("its random numbers are others")
    if penalty != 1.0 and last_n < len(prompt) + params["max_tokens"]:
        raise Skip("its repetition penalty has no window")
    tokens = prompt
    if params["max_tokens"] > 0:  # generate refuses 0
        limits = {"max_new_tokens": params["max_tokens"], "repetition_penalty": penalty}
        tokens = llama.generate(**inputs, **limits, do_sample=False)[0].tolist()
    new, before = tokens[len(prompt) :], tokenizer.decode(prompt, skip_special_tokens=True)
    written = tokenizer.decode(tokens, skip_special_tokens=True)[len(before) :]
    usage = {"prompt_token_count": len(prompt), "generated_token_count": len(new)}
    return {"text": written, "usage": usage, "token_ids": new}


def embeddings(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A vector for each text, cut where tokenizer.json says unless the case says where."""
    encoder = encoder_in(folder)
    own_limit = json.loads(Path(folder, "tokenizer.json").read_text("utf-8"))["truncation"]
    own_length = own_limit["max_length"] if own_limit else encoder.max_seq_length
    encoder.max_seq_length = length = asked.get("max_tokens", own_length)
    vectors = encoder.encode(asked["texts"], normalize_embeddings=True)
    cut = [encoder.tokenizer(one, truncation=True, max_length=length) for one in asked["texts"]]
    n_tokens = sum(len(one["input_ids"]) for one in cut)
    return {"embeddings": vectors.tolist(), "usage": {"prompt_token_count": n_tokens}}


for message in map(json.loads, iter(sys.stdin.readline, "")):
    if message["cmd"] == "stop":
        break
    reply = HELLO
    if message["cmd"] == "run":
        try:
            reply = {"id": message["id"], "result": answer(message["group"], message["input"])}
        except Skip as skip:
            reply = {"id": message["id"], "skip": str(skip)}
    print(json.dumps(reply), flush=True)
