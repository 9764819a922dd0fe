"""The interface of Spin's Serverless AI as Python types: parameters, results, the engine.

`fermyon:spin/llm@2.0.0` has two operations, `infer` and `generate-embeddings`. The names here are
those of the Spin Python SDK. Imports no model code, so importing the types is cheap.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from refllm.errors import InvalidInput

__all__ = [
    "NUMERICS_REVISION",
    "U32_MAX",
    "EmbeddingsResult",
    "EmbeddingsUsage",
    "Engine",
    "InferencingParams",
    "InferencingResult",
    "InferencingUsage",
    "as_f32",
]

NUMERICS_REVISION = 2
"""The revision of the rule of numerics by which refllm computes; each names other bits.

1. The product and the sum of each step of a matrix product were rounded separately, the sum of a
   row had one part, and the elementary functions had other coefficients.
2. Each step of a matrix product is one fused multiply-add, which is rounded once; the sum of a row
   has sixteen parts.

`golden/bits` has the SHA-256 of results of both.
"""

U32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencingParams:
    """The six parameters of `infer`, with the interface's defaults (u32 and f32 there).

    A float is used as its nearest float32 (0.8 is 0.800000011920929), because a component sends
    f32; see `as_f32`.
    """

    max_tokens: int = 100
    repeat_penalty: float = 1.1
    repeat_penalty_last_n_token_count: int = 64
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9

    def check(self) -> None:
        """Raise `InvalidInput`, with the parameter's name, for an unusable value."""
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if parameter.type == "int":
                is_number = isinstance(value, int) and not isinstance(value, bool)
                if not is_number or not 0 <= value <= U32_MAX:
                    raise InvalidInput(
                        f"{parameter.name} must be a whole number from 0 to {U32_MAX}, "
                        f"got {value!r}"
                    )
            else:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if not is_number or not math.isfinite(as_f32(value)):
                    raise InvalidInput(f"{parameter.name} must be a finite float32, got {value!r}")
        if as_f32(self.repeat_penalty) <= 0 and self.repeat_penalty_last_n_token_count > 0:
            raise InvalidInput(
                f"repeat_penalty must be greater than 0 as a float32, got {self.repeat_penalty!r}; "
                "1.0 switches it off"
            )


def as_f32(value: float) -> float:
    """Return the float32 nearest to `value` as a Python float.

    A value beyond float32's range becomes an infinity, as in a C cast.

    Example:
        >>> as_f32(0.8)
        0.800000011920929
    """
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except (OverflowError, struct.error):  # the second for a whole number beyond float64
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class InferencingUsage:
    """Tokens of the prompt (BOS included) and tokens drawn (the end token included)."""

    prompt_token_count: int
    generated_token_count: int


@dataclass(frozen=True, slots=True)
class InferencingResult:
    """The generated text, without special tokens, and the number of tokens."""

    text: str
    usage: InferencingUsage


@dataclass(frozen=True, slots=True)
class EmbeddingsUsage:
    """Tokens of all texts together, special tokens included."""

    prompt_token_count: int


@dataclass(frozen=True, slots=True)
class EmbeddingsResult:
    """One vector for each text, in the order of the texts; every value is a float32.

    `truncated` has for each text whether it was longer than the limit and was cut; it is empty if
    the engine is a server that does not report it.
    """

    embeddings: list[list[float]] = field(repr=False)
    usage: EmbeddingsUsage
    truncated: tuple[bool, ...] = field(default=(), compare=False)


class Engine(Protocol):
    """What answers the interface's requests: a local engine, a remote one, or a recording."""

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        """Return the continuation of `prompt` by `model`."""
        ...

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        """Return one vector for each of `texts`."""
        ...
