"""The interface `fermyon:spin/llm@2.0.0` in a Python component: records, errors, functions.

componentize-py makes a mutable dataclass of each record and of each case of a variant, and raises
the error of a result as `Err(value)`. So a handler has

    try:
        answer = llm.infer("llama2-chat", "Hello")
    except Err as error:
        match error.value:
            case Error_InvalidInput(message): ...

Sources: `spin_sdk.wit` of spin-sdk 3.4.1 and 5.0.0, which componentize-py generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from refllm import interface
from refllm.errors import InvalidInput, LlmError, ModelNotSupported

__all__ = [
    "EmbeddingsResult",
    "EmbeddingsUsage",
    "Err",
    "Error",
    "Error_InvalidInput",
    "Error_ModelNotSupported",
    "Error_RuntimeError",
    "InferencingParams",
    "InferencingResult",
    "InferencingUsage",
    "Llm",
    "Ok",
    "Result",
    "Some",
]

T = TypeVar("T")
E = TypeVar("E")

DEFAULT = interface.InferencingParams()


# --- Types of every interface --------------------------------------------------------------------


@dataclass
class Some(Generic[T]):
    """A present option, where it is inside another option."""

    value: T


@dataclass
class Ok(Generic[T]):
    """A result that is no error."""

    value: T


# Not frozen as the SDK's, because contextlib sets the traceback of an exception.
@dataclass
class Err(Exception, Generic[E]):
    """A result that is an error; a function raises it."""

    value: E


Result = Ok[T] | Err[E]


# --- Types of this interface ---------------------------------------------------------------------


@dataclass
class InferencingParams:
    """The six parameters of `infer`."""

    max_tokens: int = DEFAULT.max_tokens
    repeat_penalty: float = DEFAULT.repeat_penalty
    repeat_penalty_last_n_token_count: int = DEFAULT.repeat_penalty_last_n_token_count
    temperature: float = DEFAULT.temperature
    top_k: int = DEFAULT.top_k
    top_p: float = DEFAULT.top_p


@dataclass
class Error_ModelNotSupported:
    """The engine does not support this kind of model; the interface has no message here."""


@dataclass
class Error_RuntimeError:
    """The request failed while it ran."""

    value: str


@dataclass
class Error_InvalidInput:
    """The request itself cannot be answered."""

    value: str


Error = Error_ModelNotSupported | Error_RuntimeError | Error_InvalidInput


@dataclass
class InferencingUsage:
    """Tokens of the prompt, and tokens generated."""

    prompt_token_count: int
    generated_token_count: int


@dataclass
class InferencingResult:
    """The generated text, and its numbers of tokens."""

    text: str
    usage: InferencingUsage


@dataclass
class EmbeddingsUsage:
    """Tokens of all texts together."""

    prompt_token_count: int


@dataclass
class EmbeddingsResult:
    """One vector for each text."""

    embeddings: list[list[float]]
    usage: EmbeddingsUsage


@dataclass(frozen=True, slots=True)
class Llm:
    """The interface's two functions, answered by `engine`."""

    engine: interface.Engine

    def infer(self, model: str, prompt: str, params: InferencingParams | None) -> InferencingResult:
        """Return the continuation of `prompt`.

        Raises:
            Err: Of an `Error`.
        """
        # As componentize-py does, take anything that has the fields.
        names = [field.name for field in fields(interface.InferencingParams)]
        given = (
            None
            if params is None
            else interface.InferencingParams(**{name: getattr(params, name) for name in names})
        )
        with _errors_of_the_interface():
            result = self.engine.infer(model, prompt, given)
        usage = result.usage
        return InferencingResult(
            result.text, InferencingUsage(usage.prompt_token_count, usage.generated_token_count)
        )

    def generate_embeddings(self, model: str, text: Sequence[str]) -> EmbeddingsResult:
        """Return one vector for each text.

        Raises:
            Err: Of an `Error`.
        """
        with _errors_of_the_interface():
            result = self.engine.generate_embeddings(model, text)
        usage = EmbeddingsUsage(result.usage.prompt_token_count)
        return EmbeddingsResult([list(vector) for vector in result.embeddings], usage)


@contextmanager
def _errors_of_the_interface() -> Iterator[None]:
    """Raise the engine's errors as those of a component."""
    try:
        yield
    except ModelNotSupported as error:
        raise Err(Error_ModelNotSupported()) from error
    except InvalidInput as error:
        raise Err(Error_InvalidInput(str(error))) from error
    except LlmError as error:
        raise Err(Error_RuntimeError(str(error))) from error
