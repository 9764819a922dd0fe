"""What is attacked: a kind of input, how it is damaged, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["Input", "NotFinite", "Target"]


class NotFinite(Exception):
    """A result has an infinity or a NaN."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input, built and not yet read.

    Attributes:
        value: What the target reads: a path, bytes, a JSON value.
        n_bytes: Its size, by which the memory that it may take is counted.
    """

    value: Any
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of input.

    Attributes:
        name: As the command line spells it.
        what: The kind of input, for the table: "GGUF files".
        weight: How many inputs it gets beside the other targets' weights.
        build: Makes an input from the numbers of `Random`, in a folder that is empty at first and
            kept between the inputs of one process.
        read: Gives the input to refllm and returns all that came out, as bytes that are equal
            where the results are. Raises one of the interface's errors for an input that refllm
            refuses, and `NotFinite` for a result with an infinity or a NaN.
        max_seconds: How long one reading may take.
    """

    name: str
    what: str
    weight: int
    build: Callable[[Random, Path], Input]
    read: Callable[[Input], bytes]
    max_seconds: float = 2.0
