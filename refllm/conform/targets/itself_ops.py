"""The operations of the suite's group ops, each by the function that refllm's networks call.

Each is looked up where the networks have it (`refllm.llama`, `refllm.bert`, `refllm.engine`), so a
test that replaces a function there changes the network and the answer here.

T tokens, S context so far, D model width, N outputs, H heads, Hkv key/value heads, E head width,
R rotated part of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from refllm import bert, engine, llama, parameters, pooling
from refllm.checkpoints import rope_layout
from refllm.conform.targets.harness import Skip
from refllm.conform.wire import from_wire
from refllm.quant import FORMATS, Tensor

__all__ = ["answer"]

Array: TypeAlias = Any  # of float32
Asked = Mapping[str, Any]
Operation: TypeAlias = Callable[[Asked], Array]

# As Any, because the functions that these modules call are not among their exports.
LLAMA: Any = llama
BERT: Any = bert
POOLING: Any = pooling
ENGINE: Any = engine
PARAMETERS: Any = parameters

OPERATIONS: dict[str, Operation] = {}


def answer(asked: Asked) -> Mapping[str, Any]:
    """Return the result of an operation.

    Raises:
        Skip: For an operation that refllm does not have.
    """
    if asked["op"] not in OPERATIONS:
        raise Skip(f"refllm has no operation {asked['op']}")
    output = OPERATIONS[asked["op"]](asked)
    return {"output": {"shape": list(output.shape), "values": output.ravel().tolist()}}


def _operation(function: Operation) -> Operation:
    """Register an operation under its function's name."""
    OPERATIONS[function.__name__] = function
    return function


def _array(asked: Asked, name: str) -> Array:
    values = [from_wire(value) for value in asked[name]["values"]]
    return np.array(values, np.float32).reshape(asked[name]["shape"])


@_operation
def rms_norm(asked: Asked) -> Array:
    return LLAMA.rms_norm(_array(asked, "x"), _array(asked, "weight"), asked["eps"])


@_operation
def layer_norm(asked: Asked) -> Array:
    weight, bias = _array(asked, "weight"), _array(asked, "bias")
    return BERT.layer_norm(_array(asked, "x"), weight, bias, asked["eps"])


@_operation
def rope(asked: Asked) -> Array:
    """Reorder half-split elements as half-split rows are when a file is read."""
    x = _array(asked, "x")  # [T, H, E]
    n_tokens, n_heads, _ = x.shape
    rope_dim = asked["rope_dim"]
    frequencies = LLAMA.rope_frequencies(base=asked["theta"], rope_dim=rope_dim)
    table = LLAMA.rope_table(np.array(asked["positions"], np.int64), frequencies, 1.0)
    if asked["layout"] == "norm":
        return LLAMA.apply_rope(x, table, n_heads)
    rotated = np.ascontiguousarray(x[..., :rope_dim])  # [T, H, R]
    rows = np.arange(n_heads * rope_dim, dtype=np.int64)[:, None].view(np.uint8)
    order = rope_layout.interleaved(rows, n_heads=n_heads).view(np.int64)[:, 0]  # [H·R]
    turned = LLAMA.apply_rope(
        rotated.reshape(n_tokens, -1)[:, order].reshape(rotated.shape), table, n_heads
    )
    back = np.empty_like(rotated.reshape(n_tokens, -1))  # [T, H·R]
    back[:, order] = turned.reshape(n_tokens, -1)
    x[..., :rope_dim] = back.reshape(rotated.shape)
    return x


@_operation
def softmax(asked: Asked) -> Array:
    """Compute the weights of attention for a query of 1 and keys that are the scores."""
    rows = []
    for scores in _array(asked, "x"):
        n = len(scores)
        keys, _ = LLAMA.key_value_buffers(1, n_tokens=n, head_dim=1)  # [1, 1, C]
        keys[0, 0, :n] = scores
        query = np.ones((1, 1, 1), np.float32)
        weights = LLAMA.attention_weights(query, keys, np.array([n]), 1.0, n)
        rows.append(weights[0, 0])
    return np.stack(rows)


@_operation
def silu(asked: Asked) -> Array:
    """Compute SwiGLU with an up projection of ones."""
    x = _array(asked, "x")  # [D]
    return LLAMA.swiglu(np.concatenate([x, np.ones_like(x)])[None])[0]


@_operation
def gelu(asked: Asked) -> Array:
    return ENGINE.gelu(_array(asked, "x")[None])[0]


@_operation
def attention(asked: Asked) -> Array:
    """Compute a llama's attention, or an encoder's where it is full and no heads are shared."""
    q, k, v = (_array(asked, name) for name in "qkv")  # [T, H, E], [S, Hkv, E], [S, Hkv, E]
    n_new, n_heads, head_dim = q.shape
    n_seen, n_kv_heads, _ = k.shape
    if not asked["causal"] and q.shape == k.shape:
        return BERT.attention_over_texts(np.concatenate([q, k, v], axis=1), np.array([0, n_new]))
    keys, values = LLAMA.key_value_buffers(1, n_kv_heads, n_tokens=n_seen, head_dim=head_dim)
    keys[0, ..., :n_seen] = k.transpose(1, 2, 0)
    values[0, :, :n_seen] = v.transpose(1, 0, 2)
    cache = LLAMA.describe_caches([(keys, values)], n_before=[n_seen - n_new], n_new=[n_new])
    before = n_seen - n_new if asked["causal"] else n_seen - 1
    n_visible = before + 1 + np.arange(n_new) * int(asked["causal"])
    return LLAMA.attention(q, cache, n_visible, n_heads=n_heads)


@_operation
def matmul(asked: Asked) -> Array:
    w = _array(asked, "w")  # [N, D]
    tensor = Tensor("w", FORMATS["F32"], w.shape, w.view(np.uint8))
    return LLAMA.linear(_array(asked, "x"), PARAMETERS.pack(tensor))


@_operation
def mean_pool(asked: Asked) -> Array:
    is_real = np.array(asked["mask"], bool)
    return POOLING.mean_rows(_array(asked, "x")[is_real])


@_operation
def l2_normalize(asked: Asked) -> Array:
    return POOLING.l2_normalize(_array(asked, "x"))
