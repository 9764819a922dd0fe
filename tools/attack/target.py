"""What is attacked: a kind of input, how it is damaged, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection
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


def _nothing(folder: Path) -> None:
    """Prepare nothing."""


def _none() -> Collection[int]:
    """No process."""
    return ()


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
        spare_bytes: How much memory one reading may take beside twice the input's size.
        prepare: Called once in a process before its first input, so that what is compiled or
            imported only once is not counted as the first input's; the folder is empty.
        helpers: The ids of the processes that refllm keeps for this target; their time and memory
            count, too.
    """

    name: str
    what: str
    weight: int
    build: Callable[[Random, Path], Input]
    read: Callable[[Input], bytes]
    max_seconds: float = 2.0
    spare_bytes: int = 200_000_000
    prepare: Callable[[Path], None] = _nothing
    helpers: Callable[[], Collection[int]] = _none
