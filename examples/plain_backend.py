"""The plain networks as a backend that `refllm conform` can test: the key to the exercises.

    refllm conform examples.plain_backend:Backend

The exercises of docs/learn put a wrong formula in the place of a right one, in `refllm.plain.llama`
or `refllm.plain.bert`, and test again. Functions are looked up in those modules at each call, so a
formula that is replaced there is wrong in a single operation and in the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refllm
from refllm.checkpoints.open import open_weights
from refllm.conform.targets.harness import Skip
from refllm.plain import bert, llama

__all__ = ["Backend"]

Array = NDArray[np.float64]
Case = Mapping[str, Any]

MODELS = ("tiny-chat", "tiny-embed")  # they come with refllm


class Backend:
    """A target of `refllm conform`: `run` returns the result of one case."""

    def start(self) -> Mapping[str, Any]:
        """Return the backend's name, and the groups of cases that it answers."""
        return {
            "implementation": {"name": "refllm.plain", "language": "Python"},
            "groups": ["ops", "logits", "embeddings"],
        }

    def run(self, group: str, case: Case) -> Mapping[str, Any]:
        """Return the result of a case. Raises `Skip` for what the plain networks do not compute."""
        if group == "ops":
            return {"output": as_array(operation(case))}
        if case["model"] not in MODELS or case.get("numerics") == "int8":
            raise Skip("only tiny-chat and tiny-embed, and no int8")
        model, tensors = opened(case["model"])
        if group == "logits":
            return {"logits": as_array(llama.forward(model.config, tensors, case["token_ids"]))}
        limit = case.get("max_tokens")  # None is the model's own
        texts = [model.tokenizer.encode(text, max_tokens=limit) for text in case["texts"]]
        return {
            "embeddings": [bert.forward(model.config, tensors, text).tolist() for text in texts],
            "usage": {"prompt_token_count": sum(map(len, texts))},
        }


@cache
def opened(name: str) -> tuple[Any, dict[str, Array]]:
    """Return a model, for its tokenizer and hyperparameters, and its weights in float64."""
    model = refllm.load(name)
    tensors = open_weights(model.path).tensors
    return model, {key: tensor.array().astype(np.float64) for key, tensor in tensors.items()}


def operation(case: Case) -> Array:
    """Return the output of one formula."""
    a = {name: from_case(value) for name, value in case.items()}
    if case["op"] == "rope" and case["layout"] != "norm":
        raise Skip("pairs are neighbors (2i, 2i + 1), as in GGUF files")
    formulas: dict[str, Callable[[], Array]] = {
        "rms_norm": lambda: llama.rms_norm(a["x"], a["weight"], a["eps"]),
        "rope": lambda: llama.rope(
            a["x"], np.array(a["positions"]), base=a["theta"], rope_dim=a["rope_dim"]
        ),
        "attention": lambda: llama.attention(a["q"], a["k"], a["v"], causal=a["causal"]),
        "softmax": lambda: llama.softmax(a["x"]),
        "silu": lambda: llama.silu(a["x"]),
        "gelu": lambda: bert.gelu(a["x"]),
        "layer_norm": lambda: bert.layer_norm(a["x"], a["weight"], a["bias"], a["eps"]),
        "l2_normalize": lambda: bert.normalize(a["x"]),
    }
    if case["op"] not in formulas:
        raise Skip(f"the plain networks have no function for {case['op']}")
    return formulas[case["op"]]()


def from_case(value: Any) -> Any:
    """Return a value of a case's input: an array as float64, and anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    numbers = [float(number) for number in value["values"]]  # "inf" and "nan" included
    return np.array(numbers, np.float64).reshape(value["shape"])


def as_array(values: Array) -> Mapping[str, Any]:
    """Return an array as the protocol writes it."""
    return {"shape": list(values.shape), "values": values.ravel().tolist()}
