"""The questions of golden/ops: one operation each, with numbers that a reader can look at.

Most inputs are odd multiples of a power of two between −1 and 1 times `scale`, strewn by a linear
congruential generator, so that they are short in any notation and the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CASES", "Question"]

Floats = NDArray[np.float32]

EPS_5, EPS_6, EPS_12 = (float(np.float32(x)) for x in ("1e-5", "1e-6", "1e-12"))


@dataclass(frozen=True, slots=True)
class Question:
    """A case without its answer. `exact`: why no rounding can change the answer, if that is so."""

    op: str
    name: str
    proves: str
    inputs: Mapping[str, Any]
    exact: str = ""
    is_quick: bool = False


def strewn(*shape: int, seed: int, scale: float = 2.0) -> Floats:
    """Float32 numbers (2·n + 1)/128·scale with −64 ≤ n < 64."""
    state, found = seed, []
    for _ in range(math.prod(shape) + 2):
        state = (1664525 * state + 1013904223) % 2**32
        found.append(((state >> 25) * 2 - 127) / 128 * scale)
    return np.array(found[2:], np.float32).reshape(shape)


def row(*values: float) -> Floats:
    """[1, D]."""
    return np.array([values], np.float32)


def ones(n: int) -> Floats:
    """[n]."""
    return np.ones(n, np.float32)


def vector(*values: float) -> Floats:
    """[D]."""
    return np.array(values, np.float32)


def _rms_norm() -> Iterator[Question]:
    x, weight = strewn(1, 8, seed=1), strewn(8, seed=2)
    tiny = strewn(1, 8, seed=3, scale=2.0**-9)
    for name, values, proves, is_quick in (
        ("ordinary", x, "Ordinary numbers are divided by the root of their mean square.", False),
        ("tiny", tiny, "Where the mean square is as small as epsilon, epsilon decides.", True),
    ):
        for digits, eps in (("1e-5", EPS_5), ("1e-6", EPS_6)):
            yield Question(
                "rms_norm",
                f"{name}-{digits}",
                proves if name == "ordinary" else f"{proves} Here it is {digits}.",
                {"x": values, "weight": weight, "eps": eps},
                is_quick=is_quick,
            )
    yield Question(
        "rms_norm",
        "rows",
        "Every row has a mean square of its own.",
        {
            "x": np.concatenate([x, 64 * x[:, ::-1], x / 64]),
            "weight": weight,
            "eps": EPS_5,
        },
    )
    yield Question(
        "rms_norm",
        "no-mean",
        "No mean is taken off: equal numbers become 1 and not 0.",
        {"x": row(3, 3, 3, 3), "weight": ones(4), "eps": EPS_5},
        is_quick=True,
    )
    yield Question(
        "rms_norm",
        "one-large",
        "One number beside which the others are nothing becomes the root of D.",
        {"x": row(2.0**-10, -(2.0**20), 2.0**-10, 0), "weight": ones(4), "eps": EPS_5},
    )
    yield Question(
        "rms_norm",
        "zeros",
        "Zeros stay zeros, because epsilon is under the root.",
        {"x": row(0, 0, 0, 0), "weight": vector(1, 2, 3, 4), "eps": EPS_6},
        exact="zero times anything",
    )


def _layer_norm() -> Iterator[Question]:
    x, weight, bias = strewn(1, 8, seed=4), strewn(8, seed=5), strewn(8, seed=6)
    affine = {"weight": weight, "bias": bias}
    yield Question(
        "layer_norm",
        "ordinary",
        "Ordinary numbers lose their mean and are divided by their deviation.",
        {"x": x, **affine, "eps": EPS_12},
        is_quick=True,
    )
    yield Question(
        "layer_norm",
        "biased-variance",
        "The variance is the mean of the squares, divided by D and not by D − 1.",
        {"x": row(1, -1), "weight": ones(2), "bias": vector(0, 0), "eps": EPS_12},
    )
    yield Question(
        "layer_norm",
        "rows",
        "Every row has a mean and a variance of its own.",
        {"x": np.concatenate([x, x[:, ::-1] + 2, x / 2]), **affine, "eps": EPS_12},
    )
    for digits, eps in (("1e-12", EPS_12), ("1e-5", EPS_5)):
        yield Question(
            "layer_norm",
            f"tiny-{digits}",
            f"Where the variance is far below 1e-5, it matters that epsilon is {digits}.",
            {"x": strewn(1, 8, seed=7, scale=2.0**-10), **affine, "eps": eps},
            is_quick=digits == "1e-12",
        )
    yield Question(
        "layer_norm",
        "epsilon-of-bert",
        "Where the variance is as small as 1e-12, epsilon is added to it, under the root.",
        {"x": strewn(1, 8, seed=8, scale=2.0**-20), **affine, "eps": EPS_12},
    )
    yield Question(
        "layer_norm",
        "far-from-zero",
        "A mean that is large beside the deviation is taken off before anything is squared.",
        {"x": 1000 + strewn(1, 8, seed=9), **affine, "eps": EPS_12},
    )
    yield Question(
        "layer_norm",
        "constant",
        "Equal numbers leave the bias.",
        {"x": row(0.5, 0.5, 0.5, 0.5), "weight": vector(1, 2, 3, 4), "bias": vector(4, -3, 2, -1)}
        | {"eps": EPS_12},
        exact="the mean of four equal numbers is exact",
    )


LAYOUTS = {
    "norm": "neighbors (2i, 2i+1) are a pair, as in GGUF files of llama",
    "neox": "elements i and i + R/2 are a pair, as in files of Hugging Face",
}


def _rope() -> Iterator[Question]:
    places = ((0, 1e4), (1, 1e4), (5, 1e4), (511, 1e4), (100000, 1e4), (1, 5e5), (511, 5e5))
    for layout, pairs in LAYOUTS.items():
        for position, theta in (*places, (100000, 5e5)):
            theta_name = "" if theta == 1e4 else "-theta-500000"
            yield Question(
                "rope",
                f"{layout}-{position}{theta_name}",
                f"At position {position} with theta {theta:.0f}, {pairs}.",
                _rope_inputs(strewn(1, 1, 8, seed=10), [position], theta, 8, layout),
                exact="the cosine of 0 is 1, and its sine is 0" if position == 0 else "",
                is_quick=position == 5,
            )
        yield Question(
            "rope",
            f"{layout}-heads",
            "Every head of a token is turned by the same angles, every token by its own.",
            _rope_inputs(strewn(3, 2, 8, seed=11), [2, 3, 9], 1e4, 8, layout),
        )
        yield Question(
            "rope",
            f"{layout}-partial",
            "Where R is smaller than the head, the elements beyond R stay as they are.",
            _rope_inputs(strewn(2, 1, 8, seed=12), [3, 4], 1e4, 4, layout),
        )


def _rope_inputs(
    x: Floats, positions: list[int], theta: float, rope_dim: int, layout: str
) -> Mapping[str, Any]:
    return {"x": x, "positions": positions, "theta": theta, "rope_dim": rope_dim, "layout": layout}


def _softmax() -> Iterator[Question]:
    for name, proves, x in (
        ("ordinary", "The shares are e^x over their sum.", strewn(1, 8, seed=13)),
        ("ties", "Equal scores get equal shares.", row(1.5, 0.25, 1.5, 1.5, 0.25)),
        ("large", "The maximum is taken off first: e^1000 is no float.", row(1000, 998.5, 990)),
        ("very-negative", "Scores far below zero have shares as well.", row(-5000, -5001, -5000.5)),
        ("far-apart", "A score that is far below the best gets zero.", row(0, -1000, -1, 500, 498)),
        ("rows", "Every row sums to 1 by itself.", strewn(3, 5, seed=14)),
        (
            "rounded-differences",
            "Scores whose differences are no float32 are still shares of e^x.",
            row(100.7, -0.3, 99.1, 100.2),
        ),
    ):
        yield Question("softmax", name, proves, {"x": x}, is_quick=name == "large")
    yield Question(
        "softmax",
        "one",
        "A single score has the whole.",
        {"x": row(-17.25)},
        exact="1 over 1",
    )
    yield Question(
        "softmax",
        "sixteen-equal",
        "Sixteen equal scores have a sixteenth each.",
        {"x": np.full((1, 16), 3.125, np.float32)},
        exact="the sum is 16, and a power of two divides exactly",
    )


def _activations() -> Iterator[Question]:
    for name, proves, x in (
        ("ordinary", "x over 1 + e^−x.", strewn(16, seed=15, scale=4.0)),
        ("positive", "Large numbers stay as they are.", vector(8, 16.5, 20, 88, 1000, 65504)),
        ("negative", "Far below zero little is left.", vector(-10, -20.25, -40, -60, -80)),
        ("far-below-zero", "Where e^−x overflows nothing is left.", vector(-89, -500, -65504)),
        ("tiny", "Next to zero it is half of x.", vector(0, 2.0**-40, -(2.0**-40), 2.0**-14)),
    ):
        yield Question("silu", name, proves, {"x": x}, is_quick=name == "ordinary")
    for name, proves, x in (
        ("ordinary", "x times the normal distribution's Φ(x).", strewn(16, seed=16, scale=4.0)),
        (
            "not-tanh",
            "Where the approximation by tanh is furthest off, it is too far.",
            vector(2.25, 2.5, 2.125, -2.25, -2.5, -2.125, 0.75, -0.75),
        ),
        ("positive", "Large numbers stay as they are.", vector(6, 8.5, 20, 100)),
        ("negative", "Far below zero nothing is left.", vector(-6, -8.5, -14, -20)),
        ("tiny", "Next to zero it is half of x.", vector(0, 2.0**-20, -(2.0**-20), 2.0**-12)),
    ):
        yield Question("gelu", name, proves, {"x": x}, is_quick=name == "not-tanh")


def _attention() -> Iterator[Question]:
    for name, proves, (T, S, H, K, E), causal in (
        ("alone", "A token that sees only itself gets its own value.", (1, 1, 2, 2, 4), True),
        ("causal", "A token sees itself and those before it.", (4, 4, 1, 1, 4), True),
        ("heads", "Every head has its own keys and values.", (2, 2, 4, 4, 2), True),
        ("grouped", "Heads 0 and 1 share a key head, 2 and 3 the next.", (3, 3, 4, 2, 2), True),
        ("one-key-head", "All heads share the only key head.", (3, 3, 4, 1, 2), True),
        ("cached", "A new token sees the tokens that are in the cache.", (1, 6, 2, 1, 4), True),
        ("two-after-three", "Two new tokens come after three old ones.", (2, 5, 4, 2, 2), True),
        ("both-ways", "In an encoder every token sees all.", (3, 3, 2, 2, 3), False),
        ("scaled", "Scores are divided by the root of the head's width.", (1, 3, 1, 1, 16), True),
    ):
        q, k, v = strewn(T, H, E, seed=17), strewn(S, K, E, seed=18), strewn(S, K, E, seed=19)
        yield Question(
            "attention",
            name,
            proves,
            {"q": q, "k": k, "v": v, "causal": causal},
            exact="the only weight is 1" if name == "alone" else "",
            is_quick=name in ("causal", "grouped", "scaled"),
        )
    q, k = np.ones((1, 1, 2), np.float32), np.ones((4, 1, 2), np.float32)
    yield Question(
        "attention",
        "equal-keys",
        "Equal scores give the mean of the values.",
        {"q": q, "k": k, "v": np.arange(8, dtype=np.float32).reshape(4, 1, 2), "causal": True},
        exact="four weights of 1/4 and small whole numbers",
    )
    yield Question(
        "attention",
        "one-key",
        "A score that is far above the others picks one value.",
        {
            "q": np.array([[[64, 0]]], np.float32),
            "k": np.array([[[-4, 1]], [[8, 2]], [[0, 3]]], np.float32),
            "v": np.array([[[5, -1]], [[7, 3]], [[9, 2]]], np.float32),
            "causal": True,
        },
        exact="the other weights are below 2^-149",
    )


def _matmul() -> Iterator[Question]:
    x, w = strewn(2, 8, seed=20), strewn(4, 8, seed=21)
    yield _product("ordinary", "y is x times the rows of w.", x, w, is_quick=True)
    x, w = strewn(1, 3, seed=22), strewn(5, 3, seed=23)
    yield _product("not-square", "w is [N, D], a row for each output.", x, w)
    x, w = strewn(1, 32, seed=24), strewn(1, 32, seed=25)
    yield _product("long", "Thirty-two products in one sum.", x, w)
    x, w = row(2.0**24, 1, -(2.0**24), 0.5), row(1, 1, 1, 1)
    yield _product("cancels", "What cancels may take the small terms along.", x, w)
    x, w = row(1 + 2.0**-13, 3, 2.0**-18), row(1, 2.0**-16, 1)
    yield _product("not-halves", "Numbers that no float16 can hold count in full.", x, w)
    x, w = row(0, 0, 1, 0), strewn(4, 4, seed=26)
    yield _product("picks", "A one among zeros picks a column.", x, w, exact="others are 0")


def _product(
    name: str, proves: str, x: Floats, w: Floats, *, exact: str = "", is_quick: bool = False
) -> Question:
    return Question("matmul", name, proves, {"x": x, "w": w}, exact, is_quick)


def _pooling() -> Iterator[Question]:
    padded = np.concatenate([strewn(3, 4, seed=28), np.full((4, 4), 100, np.float32)])
    x = strewn(2, 4, seed=29)
    cancelling = np.concatenate([x * 256, x[::-1], -256 * x])
    for name, proves, x, mask in (
        ("all", "The mean of all tokens.", strewn(5, 4, seed=27), [1] * 5),
        ("padded", "Padding counts neither above nor below the line.", padded, [1] * 3 + [0] * 4),
        ("holes", "Only tokens that the mask has count.", strewn(4, 4, seed=33), [1, 0, 1, 1]),
        ("cancels", "Numbers that cancel leave the small ones.", cancelling, [1] * 6),
    ):
        yield Question("mean_pool", name, proves, {"x": x, "mask": mask}, is_quick=name == "padded")
    yield Question(
        "mean_pool",
        "one-token",
        "The mean of one token is itself.",
        {"x": strewn(1, 4, seed=30), "mask": [1]},
        exact="a quotient by 1",
    )


def _normalization() -> Iterator[Question]:
    for name, proves, x in (
        ("three-four", "3 and 4 have the length 5.", vector(3, 4, 0, 0)),
        ("ordinary", "The length of the result is 1.", strewn(16, seed=31)),
        ("large", "Large numbers are only a matter of scale.", strewn(8, seed=32, scale=2.0**50)),
        ("no-length", "A length below 1e-12 counts as 1e-12.", vector(3e-13, -4e-13, 0)),
    ):
        yield Question("l2_normalize", name, proves, {"x": x})
    yield Question(
        "l2_normalize",
        "zeros",
        "Zeros stay zeros and become no NaN.",
        {"x": vector(0, 0, 0)},
        exact="zero over 1e-12",
        is_quick=True,
    )


CASES: tuple[Question, ...] = (
    *_rms_norm(),
    *_layer_norm(),
    *_rope(),
    *_softmax(),
    *_activations(),
    *_attention(),
    *_matmul(),
    *_pooling(),
    *_normalization(),
)
