"""An engine that remembers what it was asked, and fails when it is told to: for tests.

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
from dataclasses import dataclass
from typing import Literal, TypeVar

from refllm.errors import LlmError
from refllm.interface import EmbeddingsResult, Engine, InferencingParams, InferencingResult

__all__ = ["Call", "RecordingEngine"]

Result = TypeVar("Result", InferencingResult, EmbeddingsResult)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to an engine and its outcome: either `result` or `error` is None.

    `infer` has a `prompt`, and `params` as they arrived (None: all defaults);
    `generate_embeddings` has `texts`.
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
        """Let the next call raise `error` instead of asking the engine.

        Several errors wait for as many calls, first come, first raised. Errors: `TypeError` if
        `error` is not one of the interface's.
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
        """The engine's continuation of `prompt`. Errors: the engine's, and those told to be."""
        return self._recorded(
            lambda: self._engine.infer(model, prompt, params),
            lambda result, error: Call(
                operation="infer",
                model=model,
                prompt=prompt,
                params=params,
                result=result,
                error=error,
            ),
        )

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        """The engine's vectors for `texts`. Errors: the engine's, and those told to be."""
        kept = tuple(texts) if isinstance(texts, Iterable) else ()  # which the engine refuses
        return self._recorded(
            lambda: self._engine.generate_embeddings(model, texts),
            lambda result, error: Call(
                operation="generate_embeddings",
                model=model,
                texts=kept,
                result=result,
                error=error,
            ),
        )

    def _recorded(
        self,
        ask: Callable[[], Result],
        call: Callable[[Result | None, Exception | None], Call],
    ) -> Result:
        """The answer of `ask`, unless a failure waits; `call` says how either is kept."""
        try:
            self._fail_if_told_to()
            result = ask()
        except Exception as error:
            self._keep(call(None, error))
            raise
        self._keep(call(result, None))
        return result

    def _fail_if_told_to(self) -> None:
        with self._lock:
            failure = self._failures.popleft() if self._failures else None
        if failure is not None:
            raise failure

    def _keep(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)
