"""Taps: how a caller sees the values between input and output.

A network calls its tap with each value under llama.cpp's name for it. The default, `ignore`, drops
them all. A llama compares its tap with `ignore` before it slices and passes values: of a model of
five layers of width 64, calls that do nothing would take 5 % of the time of a token
(benchmarks/taps.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError

__all__ = ["Tap", "at_layer", "ignore", "not_finite"]

Floats = NDArray[np.float32]


class Tap(Protocol):
    """A callback for intermediate values: called once for each, in the order of computation."""

    def __call__(self, name: str, array: Floats, /) -> object:
        """`name` is llama.cpp's, with the layer's number: "attn_norm-0"."""


def ignore(name: str, array: Floats, /) -> None:
    """The tap of a caller that looks at no intermediate value."""


def at_layer(tap: Tap, i: int) -> Tap:
    """Return the tap of layer i, which appends the layer's number to each name.

    Example:
        >>> at_layer(lambda name, array: print(name, array.shape), 3)("Qcur", np.zeros((2, 4)))
        Qcur-3 (2, 4)
    """
    if tap is ignore:
        return ignore
    return lambda name, array: tap(f"{name}-{i}", array)


def not_finite(path: Path, forward: Callable[[Tap], object]) -> LlmRuntimeError:
    """Return the error that names the first value that is not finite.

    Args:
        path: The model's path, for the message.
        forward: Computes the same once more with the tap that it is given.
    """
    first_nonfinite: list[str] = []

    def watch(name: str, array: Floats, /) -> None:
        if not first_nonfinite and not np.isfinite(array).all():
            first_nonfinite.append(name)

    with np.errstate(all="ignore"):
        forward(watch)
    value, _, layer = first_nonfinite[0].partition("-")
    where = f"layer {layer}, value {value}" if layer else f"value {value}"
    return LlmRuntimeError(
        f"{path}: the computation is not finite from {where} on; "
        "the weights before it are damaged or too large"
    )
