"""Seeing the values between input and output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError

__all__ = ["Tap", "not_finite"]

Floats = NDArray[np.float32]


class Tap(Protocol):
    """Whoever wants to see the intermediate values: called once for each, in order."""

    def __call__(self, name: str, array: Floats, /) -> None:
        """`name` is llama.cpp's, with the layer's number: "attn_norm-0"."""


def not_finite(path: Path, forward: Callable[[Tap], object]) -> LlmRuntimeError:
    """The error that names the first value that is not finite when `forward` is run again."""
    guilty: list[str] = []

    def watch(name: str, array: Floats, /) -> None:
        if not guilty and not np.isfinite(array).all():
            guilty.append(name)

    with np.errstate(all="ignore"):
        forward(watch)
    value, _, layer = guilty[0].partition("-")
    where = f"layer {layer}, value {value}" if layer else f"value {value}"
    return LlmRuntimeError(
        f"{path}: the computation is not finite from {where} on; "
        "the weights before it are damaged or too large"
    )
