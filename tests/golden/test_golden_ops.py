"""golden/ops: the file is whole, refllm is inside its tolerances, and wrong formulas are not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle
from refllm.conform.faults.catalog import Fault
from refllm.conform.faults.ops import OPS
from refllm.kernels import elementwise
from refllm.kernels.attention import attention_weights, key_value_buffers
from refllm.kernels.kv_attention import attention, describe_caches
from refllm.kernels.linear import linear
from refllm.kernels.packed.panels import pack
from refllm.quant import FORMATS, Tensor
from refllm.rope import rope_frequencies
from tests.conftest import PROJECT
from tools import golden_ops
from tools.decimal_ops import decimals, exactly, gelu

Array: TypeAlias = NDArray[Any]
Op: TypeAlias = Callable[..., Array]

FOLDER = PROJECT / "golden" / "ops"
DOCUMENT = json.loads((FOLDER / "cases.json").read_text(encoding="ascii"))
CASES = DOCUMENT["cases"]


# Reading a case


def read(value: Any) -> Any:
    """A value of an input as Python has it."""
    if isinstance(value, dict):
        values = [float.fromhex(x) for x in value["values"]]
        return np.array(values, np.float32).reshape(value["shape"])
    return float.fromhex(value) if isinstance(value, str) and value[:2] in ("0x", "-0") else value


def answered_by(ops: Mapping[str, Op], case: Mapping[str, Any]) -> Array:
    inputs = {key: read(value) for key, value in case["input"].items() if key != "op"}
    return ops[case["input"]["op"]](**inputs)


def error_in_ulps(got: Array, case: Mapping[str, Any]) -> float:
    """The largest error, in units of the ulp that the case's tolerance counts in."""
    expected = read(case["expected"]["output"])
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    scale = read(case["tolerance"].get("scale", "0x0p+0"))
    unit = np.spacing(np.maximum(np.abs(expected), np.float32(scale))).astype(np.float64)
    return float((np.abs(got.astype(np.float64) - expected) / unit).max())


def is_inside(got: Array, case: Mapping[str, Any]) -> bool:
    return error_in_ulps(got, case) <= float(case["tolerance"]["ulps"])


# refllm, twice


def rope(turn: Op, x: Array, positions: Any, theta: float, rope_dim: int, layout: str) -> Array:
    """By a function for pairs of neighbors."""
    order = np.arange(x.shape[2])
    if layout == "neox":
        order[:rope_dim] = np.arange(rope_dim).reshape(2, -1).T.ravel()
    turned = turn(x[..., order], positions, rope_frequencies(base=theta, rope_dim=rope_dim))
    return turned[..., np.argsort(order)]


def turn_by_kernels(x: Array, positions: Any, frequencies: Array) -> Array:
    table = elementwise.rope_table(np.array(positions), frequencies, 1.0)
    return elementwise.apply_rope(np.ascontiguousarray(x), table, x.shape[1])


def turn_by_oracle(x: Array, positions: Any, frequencies: Array) -> Array:
    return oracle.rope(x, np.array(positions), frequencies)


def n_visible(q: Array, k: Array, causal: bool) -> Array:
    n_tokens, n_seen = len(q), len(k)
    return np.array([n_seen - n_tokens + t + 1 if causal else n_seen for t in range(n_tokens)])


def attention_by_kernels(q: Array, k: Array, v: Array, causal: bool) -> Array:
    n_seen, n_heads, head_dim = k.shape
    keys, values = key_value_buffers(1, n_heads, n_tokens=n_seen, head_dim=head_dim)
    keys[0, ..., :n_seen], values[0, :, :n_seen] = k.transpose(1, 2, 0), v.transpose(1, 0, 2)
    cache = describe_caches([(keys, values)], n_before=[n_seen - len(q)], n_new=[len(q)])
    return attention(q, cache, n_visible(q, k, causal), n_heads=q.shape[1])


def softmax_by_kernels(x: Array) -> Array:
    """As the weights of a query of 1 over keys that are the scores."""
    n_rows, n_scores = x.shape
    one = np.ones((1, 1, 1), np.float32)
    out = np.empty_like(x)
    for t in range(n_rows):
        keys, _ = key_value_buffers(1, n_tokens=n_scores, head_dim=1)
        keys[0, 0, :n_scores] = x[t]
        weights = attention_weights(one, keys, np.array([n_scores]), 1.0, n_scores)
        out[t] = weights[0, 0]
    return out


def product_by_kernels(x: Array, w: Array) -> Array:
    data = np.ascontiguousarray(w).view(np.uint8).reshape(len(w), -1)
    return linear(x, pack(Tensor("w", FORMATS["F32"], w.shape, data)))


def kept(x: Array, mask: Any) -> Array:
    return np.ascontiguousarray(x[np.array(mask) == 1])


KERNELS: Mapping[str, Op] = {
    "rms_norm": elementwise.rms_norm,
    "layer_norm": elementwise.layer_norm,
    "rope": lambda **inputs: rope(turn_by_kernels, **inputs),
    "softmax": softmax_by_kernels,
    "silu": lambda x: elementwise.swiglu(np.concatenate([x, np.ones_like(x)])[None])[0],
    "gelu": lambda x: elementwise.gelu(x[None])[0],
    "attention": attention_by_kernels,
    "matmul": product_by_kernels,
    "mean_pool": lambda x, mask: elementwise.mean_rows(kept(x, mask)),
    "l2_normalize": elementwise.l2_normalize,
}
ORACLE: Mapping[str, Op] = {
    "rms_norm": oracle.rms_norm,
    "layer_norm": oracle.layer_norm,
    "rope": lambda **inputs: rope(turn_by_oracle, **inputs),
    "softmax": lambda x: oracle.softmax(x),  # noqa: PLW0108 (its argument is called scores)
    "silu": oracle.silu,
    "gelu": oracle.gelu,
    "attention": lambda q, k, v, causal: oracle.attention(
        q, k, v, n_visible(q, k, causal).tolist()
    ),
    "matmul": oracle.matmul,
    "mean_pool": lambda x, mask: oracle.mean_rows(kept(x, mask)),
    "l2_normalize": oracle.normalize,
}


@pytest.mark.parametrize("ops", [KERNELS, ORACLE], ids=["kernels", "oracle"])
@pytest.mark.parametrize("case", CASES, ids=itemgetter("id"))
def test_refllm_is_inside_the_tolerance(case: Mapping[str, Any], ops: Mapping[str, Op]) -> None:
    assert is_inside(answered_by(ops, case), case)


def test_the_readme_has_the_largest_errors() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    rows = readme.partition("| `op` | refllm's")[2].partition("\n\n")[0].splitlines()[2:]
    published = {
        cells[1].strip("` "): float(cells[2]) for cells in (row.split("|") for row in rows)
    }
    largest = dict.fromkeys(KERNELS, 0.0)
    for case in CASES:
        op = case["input"]["op"]
        largest[op] = max(largest[op], error_in_ulps(answered_by(KERNELS, case), case))
    assert {op: math.ceil(100 * error) / 100 for op, error in largest.items()} == published


# The file


def test_the_tool_writes_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["golden_ops", str(tmp_path)])
    golden_ops.main()
    assert (tmp_path / "cases.json").read_bytes() == (FOLDER / "cases.json").read_bytes()


def test_every_operation_has_a_quick_case() -> None:
    assert {case["input"]["op"] for case in CASES if "quick" in case} >= KERNELS.keys()


def test_the_decimals_agree_with_known_values() -> None:
    # Φ(1) and Φ(−1), Abramowitz and Stegun, table 26.1.
    phi = exactly(gelu, x=decimals(np.array([1.0, -1.0], np.float32)))
    assert phi.tolist() == [np.float32(0.841344746068543), np.float32(-0.158655253931457)]


# Wrong formulas


def wrong_answer(fault: str, case: Mapping[str, Any]) -> Array:
    """The case's output by the fault's formula in float64, rounded to float32."""
    with np.errstate(all="ignore"):
        inputs = {key: read(value) for key, value in case["input"].items()}
        wide = {
            key: value.astype(np.float64) if isinstance(value, np.ndarray) else value
            for key, value in inputs.items()
        }
        return np.asarray(OPS.named(fault).wrong(wide), np.float32)


def causal_in_an_encoder(q: Array, k: Array, v: Array, causal: bool) -> Array:
    return oracle.attention(q, k, v, n_visible(q, k, not causal).tolist())


def half_precision(x: Array, w: Array) -> Array:
    return oracle.matmul(x.astype(np.float16).astype(np.float32), w)


def softmax_without_maximum(x: Array) -> Array:
    with np.errstate(all="ignore"):
        e = np.exp(x)
        result: Array = np.nan_to_num(e / e.sum(axis=1, keepdims=True), nan=9.0)
    return result


@pytest.mark.parametrize(
    ("fault", "case_id"),
    [
        ("tanh GELU", "ops/gelu-not-tanh"),
        ("RMSNorm epsilon 1e-06", "ops/rms-norm-tiny-1e-5"),
        ("RMSNorm epsilon 1e-05", "ops/rms-norm-tiny-1e-6"),
        ("RMSNorm with mean subtracted", "ops/rms-norm-no-mean"),
        ("LayerNorm epsilon 1e-05", "ops/layer-norm-tiny-1e-12"),
        ("LayerNorm by D - 1", "ops/layer-norm-biased-variance"),
        ("RoPE layout swapped", "ops/rope-norm-5"),
        ("RoPE layout swapped", "ops/rope-neox-100000"),
        ("RoPE position one too large", "ops/rope-norm-511"),
        ("RoPE base 10000", "ops/rope-neox-1-theta-500000"),
        ("scores not scaled", "ops/attention-scaled"),
        ("GQA heads by modulo", "ops/attention-grouped"),
        ("causal mask missing", "ops/attention-causal"),
        ("token does not see itself", "ops/attention-cached"),
        ("mean divided by the padded length", "ops/mean-pool-padded"),
    ],
)
def test_a_fault_is_far_outside(fault: str, case_id: str) -> None:
    [case] = [case for case in CASES if case["id"] == case_id]
    got = wrong_answer(fault, case)
    assert error_in_ulps(got, case) > 10 * max(case["tolerance"]["ulps"], 1)


@pytest.mark.parametrize("fault", [fault for fault in OPS if fault.wrong], ids=lambda f: f.name)
def test_every_fault_is_far_outside_in_a_case_of_its_operation(fault: Fault) -> None:
    of_op = [case for case in CASES if case["input"]["op"] == fault.op]
    outside = [not_inside_by_far(wrong_answer(fault.name, case), case) for case in of_op]
    assert any(outside)


def not_inside_by_far(got: Array, case: Mapping[str, Any]) -> bool:
    return not error_in_ulps(got, case) <= 10 * max(case["tolerance"]["ulps"], 1)  # or NaN


@pytest.mark.parametrize(
    ("op", "wrong", "case_id"),
    [
        ("attention", causal_in_an_encoder, "ops/attention-both-ways"),
        ("matmul", half_precision, "ops/matmul-not-halves"),
        ("softmax", softmax_without_maximum, "ops/softmax-large"),
    ],
)
def test_a_wrong_formula_is_far_outside(op: str, wrong: Op, case_id: str) -> None:
    [case] = [case for case in CASES if case["id"] == case_id]
    got = answered_by({op: wrong}, case)
    assert error_in_ulps(got, case) > 10 * max(case["tolerance"]["ulps"], 1)
