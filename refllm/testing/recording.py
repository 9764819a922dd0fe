"""An engine for tests that records its calls, and fails on request.

engine = RecordingEngine(LocalEngine())
engine.fail_next(LlmRuntimeError("out of memory"))
engine.infer("tiny", "Hello")       raises that error
engine.infer("tiny", "Hello")       the model's own answer
[call.error for call in engine.calls]       [LlmRuntimeError('out of memory'), None]
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from refllm.errors import LlmError
from refllm.interface import EmbeddingsResult, Engine, InferencingParams, InferencingResult

__all__ = ["Call", "RecordingEngine"]

Result = TypeVar("Result", InferencingResult, EmbeddingsResult)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to an engine and its outcome.

    Attributes:
        operation: "infer" or "generate_embeddings".
        model: The model's name.
        prompt: Of `infer`.
        texts: Of `generate_embeddings`.
        params: Of `infer`, as given; None is all defaults.
        result: None if the call raised an error.
        error: None if the call has a result.
    """

    operation: Literal["infer", "generate_embeddings"]
    model: str
    prompt: str | None = None
    texts: tuple[str, ...] | None = None
    params: InferencingParams | None = None
    result: InferencingResult | EmbeddingsResult | None = None
    error: Exception | None = None


class RecordingEngine:
    """Answers as `engine` does, and keeps every call. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: list[Call] = []
        self._failures: deque[LlmError] = deque()
        self._lock = threading.Lock()

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call so far, in the order in which they ended."""
        with self._lock:
            return tuple(self._calls)

    def fail_next(self, error: LlmError) -> None:
        """Let the next call raise `error` instead of calling the engine.

        Several errors are raised by as many calls, in their order.

        Raises:
            TypeError: If `error` is not one of the interface's.
        """
        if not isinstance(error, LlmError):
            raise TypeError(
                "fail_next needs an error of the interface, such as "
                f"refllm.LlmRuntimeError('out of memory'); got {error!r:.80}"
            )
        with self._lock:
            self._failures.append(error)

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        """Return the engine's continuation of `prompt`. Raises its errors, and `fail_next`'s."""
        call = Call(operation="infer", model=model, prompt=prompt, params=params)
        return self._record(call, lambda: self._engine.infer(model, prompt, params))

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        """Return the engine's vectors for `texts`. Raises its errors, and `fail_next`'s."""
        kept = tuple(texts) if isinstance(texts, Iterable) else ()  # the engine refuses others
        call = Call(operation="generate_embeddings", model=model, texts=kept)
        return self._record(call, lambda: self._engine.generate_embeddings(model, texts))

    def _record(self, call: Call, compute: Callable[[], Result]) -> Result:
        """Return the result of `compute`, or raise the next failure; keep the call with either."""
        with self._lock:
            failure = self._failures.popleft() if self._failures else None
        if failure is not None:
            self._keep(replace(call, error=failure))
            raise failure
        try:
            result = compute()
        except Exception as error:
            self._keep(replace(call, error=error))
            raise
        self._keep(replace(call, result=result))
        return result

    def _keep(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)
