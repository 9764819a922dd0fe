"""A harness for mlx-lm: llamas of Hugging Face's folders on mlx, on the CPU.

    python mlx_lm_py.py HF

HF has a folder with config.json, tokenizer.json and safetensors for each model of the suite.
"""

import sys
from functools import cache
from pathlib import Path

import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from protocol import Skip, greedy_only, numbers, serve

HF = Path(sys.argv[1])
mx.set_default_device(mx.cpu)


@cache
def loaded(model):
    """Return the network and the tokenizer of a model."""
    if not (HF / model).exists() or model == "tiny-embed":
        raise Skip(f"there is no llama {model}")
    return load(str(HF / model))


def tokenizer(asked):
    """Return the ids of a text, and the text of the ids."""
    _, own = loaded(asked["model"])
    ids = own.encode(asked["text"])
    return {"ids": ids, "text": own.decode(ids, skip_special_tokens=True)}


def logits(asked):
    """Return the scores of the next token, after each token."""
    if asked["numerics"] != "exact":
        raise Skip("activations are not quantized")
    network, _ = loaded(asked["model"])
    scores = network(mx.array([asked["token_ids"]]))[0].astype(mx.float32)  # [T, V]
    return {"logits": {"shape": list(scores.shape), "values": numbers(scores.flatten().tolist())}}


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params)
    if params["max_tokens"] == 0:
        raise Skip("it refuses max_tokens 0")
    network, own = loaded(asked["model"])
    prompt = own.encode(asked["prompt"])
    penalty, window = params["repeat_penalty"], params["repeat_penalty_last_n_token_count"]
    options = {"repetition_penalty": penalty, "repetition_context_size": window} if window else {}
    answers = list(
        stream_generate(
            network,
            own,
            prompt,
            max_tokens=params["max_tokens"],
            sampler=make_sampler(temp=0.0),
            logits_processors=make_logits_processors(**options),
        )
    )
    counts = {
        "prompt_token_count": answers[-1].prompt_tokens,
        "generated_token_count": answers[-1].generation_tokens,
    }
    return {"text": "".join(each.text for each in answers), "usage": counts}


serve(["mlx-lm", "mlx"], {"tokenizer": tokenizer, "logits": logits, "text": text})
