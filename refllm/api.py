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
    """Return the continuation of `prompt` by `model`, with default parameters."""
    return infer_with_options(model, prompt)


def infer_with_options(
    model: str, prompt: str, options: InferencingParams | None = None
) -> InferencingResult:
    """Return the continuation of `prompt` by `model`.

    Args:
        model: A model's name.
        prompt: The text to continue.
        options: The interface's parameters.

    Raises:
        InvalidInput: If the caller must change the request.
        ModelNotSupported: If the model is not supported.
        LlmRuntimeError: If the request fails, such as for a damaged file.

    Example:
        >>> result = infer_with_options("tiny-chat", "Once upon a", InferencingParams(max_tokens=1))
        >>> result.text, result.usage.generated_token_count
        (' time', 1)
    """
    return _default_engine().infer(model, prompt, options)


def generate_embeddings(model: str, text: Sequence[str]) -> EmbeddingsResult:
    """Return one L2-normalized vector for each text; a vector does not depend on the other texts.

    Raises:
        InvalidInput: If the caller must change the request.
        ModelNotSupported: If the model is not supported.
        LlmRuntimeError: If the request fails, such as for a damaged file.

    Example:
        >>> result = generate_embeddings("tiny-embed", ["A cat sat on the mat."])
        >>> len(result.embeddings), result.usage.prompt_token_count
        (1, 9)
    """
    return _default_engine().generate_embeddings(model, text)


def _default_engine() -> Engine:
    # Imported here: the engine imports numba, and `import refllm` must stay cheap.
    from refllm.engine import default_engine

    return default_engine()
