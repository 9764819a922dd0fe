"""A harness for refllm conform, without refllm: a greedy sampler and Q8_0, no more.

refllm conform "python docs/harnesses/harness.py"
"""

import json
import math
import struct
import sys
from typing import Any

WHO = {"name": "example", "version": "1.0", "language": "Python"}
HELLO = {"version": 1, "implementation": WHO, "groups": ["sampling", "quant"]}


class Skip(Exception):
    """The backend cannot be asked this; the text says why."""


def answer(group: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The result of a case."""
    return quant(asked) if group == "quant" else sampling(asked["params"], asked)


def sampling(params: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The most likely token after the repeat penalty."""
    logits, last_n = list(asked["logits"]), params["repeat_penalty_last_n_token_count"]
    if any(isinstance(number, str) for number in [*params.values(), *logits]):
        raise Skip("only finite numbers are looked at")
    if params["temperature"] > 0:
        raise Skip("only the most likely token is taken")
    penalty = struct.unpack("<f", struct.pack("<f", params["repeat_penalty"]))[0]
    if penalty <= 0 and last_n > 0:
        return {"error": {"kind": "invalid-input", "message": "repeat_penalty must be above 0"}}
    for token in set(asked["previous_tokens"][-last_n:] if last_n > 0 else []):
        logits[token] = logits[token] / penalty if logits[token] >= 0 else logits[token] * penalty
    return {"token": logits.index(max(logits))}


def quant(asked: dict[str, Any]) -> dict[str, Any]:
    """The values of Q8_0 blocks: a float16, and 32 whole numbers that it is multiplied with."""
    if asked["format"] != "Q8_0":
        raise Skip("only Q8_0 is decoded")
    blocks = struct.iter_unpack("<e32b", bytes.fromhex(asked["bytes"]))
    values = [scale * level for scale, *levels in blocks for level in levels]
    return {"values": [value if math.isfinite(value) else str(value) for value in values]}


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
