"""Faults of single operations: each computes the case's output itself, in float64.

T tokens, S context so far, D model width, H heads, Hkv key/value heads, E head width, R rotated
part of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles, array
from refllm.conform.faults.catalog import Faults, agrees, explained_share
from refllm.conform.faults.embeddings import EMBEDDINGS
from refllm.conform.faults.faulty_bert import Encoder
from refllm.conform.faults.faulty_llama import Network
from refllm.conform.faults.logits import LOGITS
from refllm.trace.faults.bert import mean
from refllm.trace.faults.formulas import attention, causal, layer_norm, rotate, softmax

__all__ = ["OPS", "compute", "inputs"]

OPS = Faults("ops", LOGITS, EMBEDDINGS)

# An operation's inputs by name: arrays are arrays.
Inputs: TypeAlias = Mapping[str, Any]

# A number beside which a deviation is lost when both are squared in float32.
FAR = 100.0
# float16, bfloat16 and TF32 have 8 to 11 bits.
FEW_BITS = 2.0**-6


def inputs(case: Case) -> dict[str, Any]:
    """Return the case's inputs by name, arrays as arrays."""
    return {
        name: array(case.input, name) if isinstance(value, Mapping) else value
        for name, value in case.input.items()
    }


def compute(i: Inputs, part: Network | Encoder | None = None) -> Doubles:
    """Return the output of the operation i["op"] as a network or an encoder computes it.

    The parts of the other, and of both by default, are right.
    """
    n = part if isinstance(part, Network) else Network()
    e = part if isinstance(part, Encoder) else Encoder()
    match i["op"]:
        case "rms_norm":
            result = n.norm(i["x"], i["weight"], i["eps"] if n.eps is None else n.eps)
        case "layer_norm":
            eps = i["eps"] if e.eps is None else e.eps
            result = e.norm(i["x"], i["weight"], i["bias"], eps)
        case "rope":
            result = rope(i, n)
        case "softmax":
            result = softmax(i["x"])
        case "silu":
            result = n.activation(i["x"])
        case "gelu":
            result = e.activation(i["x"])
        case "attention":
            shape = len(i["q"]), len(i["k"])
            mask = (n.mask or causal)(*shape) if i["causal"] or n.mask else np.True_
            result = attention(i["q"], i["k"], i["v"], mask, scale=n.scale, kv_head=n.kv_head)
        case "matmul":
            result = i["x"] @ i["w"].T
        case "mean_pool":
            result = (e.pool or mean)(i["x"][None], np.array(i["mask"], bool)[None])[0]
        case "l2_normalize":
            result = e.normalize(i["x"])
        case op:
            raise LookupError(f"there is no operation {op!r}")
    return np.asarray(result)


def rope(
    i: Inputs, n: Network, *, turns_all: bool = False, frequencies_by_head: bool = False
) -> Doubles:
    """Return the pairs of x [T, H, E] turned by position · theta^(−2i/R)."""
    head_dim = i["x"].shape[-1]
    rope_dim = head_dim if turns_all else i["rope_dim"]
    base = i["theta"] if n.rope_base is None else n.rope_base
    exponents = np.arange(rope_dim // 2) * -2.0 / (head_dim if frequencies_by_head else rope_dim)
    positions = n.positions(np.array(i["positions"]))[:, None, None]
    angles = n.rope_sign * positions * base**exponents  # [T, 1, R/2]
    halves = (i["layout"] == "neox") != n.rope_swaps_layout
    return rotate(i["x"], angles, halves=halves) if n.rotates else np.asarray(i["x"])


def _operation(name: str, op: str, wrong: Callable[[Inputs], Doubles], cause: str = "") -> None:
    def computed(function: Callable[[Inputs], Doubles], case: Case) -> Doubles:
        with np.errstate(all="ignore"):
            return function(inputs(case))

    def evidence(case: Case, got: Json) -> float:
        if case.input["op"] != op:
            return 0.0
        right = computed(compute, case)
        return explained_share(array(got, "output") - right, computed(wrong, case) - right)

    def would_fail(case: Case) -> bool:
        if case.input["op"] != op:
            return False
        output = computed(wrong, case)
        written = {"shape": list(output.shape), "values": output.ravel().tolist()}
        return not agrees(case, case.expected, {"output": written})

    OPS.add(name, cause, evidence, would_fail=would_fail, wrong=wrong, op=op)


for _fault in (*LOGITS, *EMBEDDINGS):
    if _fault.op:
        _operation(_fault.name, _fault.op, partial(compute, part=_fault.wrong))


def _of(part: Network | Encoder) -> Callable[[Inputs], Doubles]:
    return partial(compute, part=part)


def _transposed(i: Inputs) -> Doubles:
    if i["w"].shape[0] != i["w"].shape[1]:
        return np.full((len(i["x"]), len(i["w"])), np.nan)
    return np.asarray(i["x"] @ i["w"])


_operation(
    "LayerNorm without mean",
    "layer_norm",
    _of(Encoder(norm=partial(layer_norm, centers=False))),
    "LayerNorm does not subtract the mean, as RMSNorm does not: subtract it.",
)
_operation(
    "LayerNorm by D - 1",
    "layer_norm",
    _of(Encoder(norm=partial(layer_norm, n_less=1))),
    "LayerNorm's variance is divided by D - 1: divide by D.",
)
_operation(
    "LayerNorm without bias",
    "layer_norm",
    _of(Encoder(norm=partial(layer_norm, adds_bias=False))),
    "LayerNorm's bias is not added.",
)
_operation(
    "LayerNorm epsilon outside the root",
    "layer_norm",
    _of(Encoder(norm=partial(layer_norm, eps_outside=True))),
    "LayerNorm adds epsilon to the root: add it to the variance.",
)
_operation(
    "RoPE position one too large",
    "rope",
    _of(Network(positions=lambda positions: positions + 1)),
    "RoPE turns by a position that is one too large: the first token has position 0.",
)
_operation(
    "RoPE position one too small",
    "rope",
    _of(Network(positions=lambda positions: positions - 1)),
    "RoPE turns by a position that is one too small.",
)
_operation(
    "RoPE turns the whole head",
    "rope",
    partial(rope, n=Network(), turns_all=True),
    "RoPE turns the whole head: turn its first R elements only.",
)
_operation(
    "RoPE frequencies by the head",
    "rope",
    partial(rope, n=Network(), frequencies_by_head=True),
    "RoPE's frequencies are theta^(-2i/E) by the head's width: take R, the part that is turned.",
)
_operation(
    "softmax over columns",
    "softmax",
    lambda i: softmax(i["x"], axis=0),
    "The softmax goes over columns: each row sums to 1.",
)
_operation(
    "cached tokens not seen",
    "attention",
    _of(Network(mask=lambda n_tokens, n_seen: np.tri(n_tokens, n_seen, dtype=bool))),
    "New tokens do not see all that is in the cache: they are the last of the tokens seen, so "
    "token t sees the first S - T + t + 1.",
)
_operation(
    "matrix transposed",
    "matmul",
    _transposed,
    "The matrix is transposed: its rows are its outputs.",
)
_operation(
    "mean divided by the padded length",
    "mean_pool",
    _of(Encoder(pool=lambda x, is_real: (x * is_real[..., None]).mean(axis=1))),
    "The sum of the real tokens is divided by the padded length: divide it by the number of real "
    "tokens.",
)


@OPS.seen(
    "overflow",
    "The exponential overflows, or something is divided by 0: subtract the largest number before "
    "exp, and keep a length from being 0.",
)
def _overflow(case: Case, got: Json) -> bool:
    """Finite numbers are expected, and some are not."""
    is_finite = np.isfinite(array(case.expected, "output")).all()
    return bool(is_finite and not np.isfinite(array(got, "output")).all())


@OPS.seen(
    "variance by difference",
    "LayerNorm's variance is a difference of large squares: subtract the mean first, and then "
    "square.",
    is_vague=True,
)
def _variance_by_difference(case: Case, got: Json) -> bool:
    """The deviations are small beside the mean."""
    if case.input["op"] != "layer_norm":
        return False
    x = array(case.input, "x")
    is_far = np.abs(x.mean(axis=-1)) > FAR * x.std(axis=-1)
    return bool(is_far.all() and np.isfinite(array(got, "output")).all())


@OPS.seen(
    "few bits",
    "The numbers have fewer than float32's 24 bits (float16, bfloat16 or TF32): compute in "
    "float32.",
    is_vague=True,
)
def _few_bits(case: Case, got: Json) -> bool:
    expected, found = array(case.expected, "output"), array(got, "output")
    size = np.maximum(np.abs(expected), float(case.tolerance.get("scale", 0.0)))
    return bool((np.abs(found - expected) <= FEW_BITS * size).all())
