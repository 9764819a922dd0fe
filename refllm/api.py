"""The three functions of Spin's Serverless AI, answered by the default engine.

Re-exports the types of `refllm.interface` and the errors of `refllm.errors`. Imports no model code,
so importing it is cheap; `refllm.engine.LocalEngine` computes the answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.interface import (
    EmbeddingsResult,
    EmbeddingsUsage,
    Engine,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
)

__all__ = [
    "EmbeddingsResult",
    "EmbeddingsUsage",
    "Engine",
    "InferencingParams",
    "InferencingResult",
    "InferencingUsage",
    "InvalidInput",
    "LlmError",
    "LlmRuntimeError",
    "ModelNotSupported",
    "generate_embeddings",
    "infer",
    "infer_with_options",
]


def infer(model: str, prompt: str) -> InferencingResult:
    """The continuation of `prompt` by the model called `model`, with default parameters."""
    return infer_with_options(model, prompt)


def infer_with_options(
    model: str, prompt: str, options: InferencingParams | None = None
) -> InferencingResult:
    """The continuation of `prompt` by the model called `model`.

    Errors: `InvalidInput`, `ModelNotSupported`, `LlmRuntimeError`; no other exception leaves here.
    """
    return _default_engine().infer(model, prompt, options)


def generate_embeddings(model: str, text: Sequence[str]) -> EmbeddingsResult:
    """One L2-normalized vector for each text; a vector never depends on the other texts.

    Errors: `InvalidInput`, `ModelNotSupported`, `LlmRuntimeError`; no other exception leaves here.
    """
    return _default_engine().generate_embeddings(model, text)


def _default_engine() -> Engine:
    # Imported here, not above: an engine brings numba, and `import refllm` must stay cheap.
    from refllm.engine import default_engine

    return default_engine()
