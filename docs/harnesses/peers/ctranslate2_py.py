"""A harness for CTranslate2: a llama converted by its own converter, in float32.

    python ctranslate2_py.py HF

HF has a folder with config.json, tokenizer.json and safetensors for each model of the suite.
"""

import sys
import tempfile
from functools import cache
from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter
from protocol import Skip, greedy_only, numbers, serve
from transformers import AutoTokenizer

HF = Path(sys.argv[1])
CONVERTED = Path(tempfile.mkdtemp())


@cache
def words(model):
    """Return the tokenizer of a model, which is not of CTranslate2."""
    if not (HF / model).exists():
        raise Skip(f"there is no folder of {model}")
    return AutoTokenizer.from_pretrained(str(HF / model))


@cache
def loaded(model):
    """Return the network of a model."""
    TransformersConverter(str(HF / model)).convert(str(CONVERTED / model))
    return ctranslate2.Generator(str(CONVERTED / model), compute_type="float32", intra_threads=1)


def logits(asked):
    """Return the scores of the next token, after each token."""
    if asked["numerics"] != "exact":
        raise Skip("activations are not quantized as in llama.cpp")
    tokens = words(asked["model"]).convert_ids_to_tokens(asked["token_ids"])
    scores = np.array(loaded(asked["model"]).forward_batch([tokens]))[0]  # [T, V]
    return {"logits": {"shape": list(scores.shape), "values": numbers(scores.ravel())}}


def text(asked):
    """Return the most likely continuation."""
    params = asked["params"]
    greedy_only(params)
    if params["repeat_penalty"] != 1.0 and params["repeat_penalty_last_n_token_count"] > 0:
        raise Skip("its repetition penalty has no window")
    if params["max_tokens"] == 0:
        raise Skip("it refuses max_tokens 0")
    own = words(asked["model"])
    prompt = own(asked["prompt"])["input_ids"]
    [answer] = loaded(asked["model"]).generate_batch(
        [own.convert_ids_to_tokens(prompt)],
        max_length=params["max_tokens"],
        include_prompt_in_result=False,
        end_token=own.eos_token,
        return_end_token=True,
    )
    [ids] = answer.sequences_ids
    before = own.decode(prompt, skip_special_tokens=True)
    written = own.decode(prompt + ids, skip_special_tokens=True)[len(before) :]
    counts = {"prompt_token_count": len(prompt), "generated_token_count": len(ids)}
    return {"text": written, "usage": counts, "token_ids": ids}


serve(["ctranslate2", "transformers", "torch"], {"logits": logits, "text": text})
