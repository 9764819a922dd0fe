"""Calls of the interface that guests are asked to make, and an engine that records them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refllm.interface import (
    EmbeddingsResult,
    EmbeddingsUsage,
    Engine,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
)
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.wasi.http import Request

__all__ = ["PROMPT", "TEXTS", "UNUSABLE", "USABLE", "ZEROS", "Options", "Recorder", "called"]

Options = Mapping[str, int | float]

PROMPT = "the cat sat on"
TEXTS = ["the cat", "", "a dog sat on the mat", "the cat"]
USABLE: Sequence[Options] = (
    {},
    {"max_tokens": 0},
    {"max_tokens": 1},
    {"max_tokens": 2**32 - 1, "temperature": 0.0},
    {"temperature": -1.0},
    {"temperature": -0.0},
    {"temperature": 1e-30},
    {"temperature": 3e38},
    {"top_k": 0},
    {"top_k": 1},
    {"top_k": 2**32 - 1},
    {"top_p": 0.0},
    {"top_p": 1.0},
    {"top_p": 0.05},
    {"repeat_penalty": 1.0},
    {"repeat_penalty": 1e-30},
    {"repeat_penalty": 0.0, "repeat_penalty_last_n_token_count": 0},
    {"repeat_penalty_last_n_token_count": 2**32 - 1},
    {
        "max_tokens": 7,
        "repeat_penalty": 1.3,
        "repeat_penalty_last_n_token_count": 5,
        "temperature": 1.7,
        "top_k": 11,
        "top_p": 0.6,
    },
)
"""Options with which `infer` answers: the edges of each, and one in which all differ."""

UNUSABLE: Sequence[Options] = (
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"top_p": math.nan},
    {"repeat_penalty": -math.inf},
    {"repeat_penalty": 0.0},
    {"repeat_penalty": -1.0},
)
"""Options with which `infer` is invalid input."""

ZEROS: Options = {
    "max_tokens": 0,
    "repeat_penalty": 0.0,
    "repeat_penalty_last_n_token_count": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 0.0,
}


@dataclass(frozen=True, slots=True)
class Recorder:
    """An engine that keeps the parameters of `infer`, and answers with nothing."""

    params: list[InferencingParams | None] = field(default_factory=list)

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        self.params.append(params)
        return InferencingResult("", InferencingUsage(0, 0))

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        return EmbeddingsResult([], EmbeddingsUsage(0))


def called(host: Host, guest: Program, engine: Engine, function: str, *arguments: object) -> Any:
    """What the guest gets when it calls the function."""
    call = {"function": function, "arguments": [_as_json(argument) for argument in arguments]}
    request = Request("POST", "/", (), json.dumps(call, allow_nan=False).encode())
    response = host.respond(guest, request, Services(engine))
    assert response.status == 200, response.body
    return json.loads(response.body)


def _as_json(argument: object) -> object:
    """The argument, with names for the numbers that JSON lacks."""
    if not isinstance(argument, Mapping):
        return argument
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {
        key: "NaN" if math.isnan(value) else names.get(value, value)
        for key, value in argument.items()
    }
