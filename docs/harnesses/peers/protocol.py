"""The loop of a harness in Python, for the engines of docs/peers.md; it needs no package.

from protocol import Skip, serve
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any


class Skip(Exception):
    """The engine cannot be asked this; the text is the reason."""


def serve(packages: Sequence[str], groups: Mapping[str, Callable[[Any], Any]]) -> None:
    """Answer cases until the stop message.

    Args:
        packages: The names of the engine's packages on PyPI, the engine itself first.
        groups: The function that gives the result of a case's input, for each group.
    """
    # Libraries in C print to file descriptor 1, past sys.stdout: it becomes standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, *others = packages
    engine = {"name": name, "version": version(name), "language": "Python"}
    engine["details"] = {other: version(other) for other in others}
    for line in sys.stdin:
        message = json.loads(line)
        if message["cmd"] == "stop":
            break
        if message["cmd"] == "start":
            reply = {"version": 1, "implementation": engine, "groups": list(groups)}
        else:
            reply = {"id": message["id"], **outcome(groups[message["group"]], message["input"])}
        print(json.dumps(reply), file=answers, flush=True)


def outcome(answer: Callable[[Any], Any], asked: Any) -> dict[str, Any]:
    """Return the result of a case, or why there is none."""
    try:
        return {"result": answer(asked)}
    except Skip as skip:
        return {"skip": str(skip)}
    except Exception as error:  # noqa: BLE001 - of any kind: the report has a line for each
        return {"error": f"{type(error).__name__}: {error}"}


def numbers(values: Iterable[float]) -> list[float | str]:
    """Return floats as JSON can hold them: "nan", "inf" and "-inf" are strings."""
    return [value if math.isfinite(value) else str(value) for value in map(float, values)]


def greedy_only(params: Mapping[str, Any], *, has_penalty: bool = True) -> None:
    """Raise `Skip` for a text that depends on random numbers, or on a penalty that is not there."""
    if params["temperature"] > 0 and params["max_tokens"] > 0:
        raise Skip("its random numbers are others")
    window = params["repeat_penalty_last_n_token_count"]
    if not has_penalty and params["repeat_penalty"] != 1.0 and window > 0:
        raise Skip("it has no repeat penalty")


def counted(tokenizer: Any, prompt: str, written: str, max_tokens: int) -> dict[str, int]:
    """Return the counts of an engine that gives none, from its texts.

    Args:
        tokenizer: A `tokenizers.Tokenizer` of the model.
        prompt: The prompt.
        written: The text that was written after it.
        max_tokens: Of the request; a text that ended before has an end token, which is counted.
    """
    n_prompt = len(tokenizer.encode(prompt).ids)
    n_written = len(tokenizer.encode(prompt + written).ids) - n_prompt
    n_written += n_written < max_tokens
    return {"prompt_token_count": n_prompt, "generated_token_count": n_written}
