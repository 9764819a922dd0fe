"""The interface `fermyon:spin/llm@2.0.0` as a Python component sees it: records, errors, functions.

componentize-py makes a mutable dataclass of each record and of each case of a variant, and raises
the error of a result as `Err(value)`. So a handler writes

    try:
        answer = llm.infer("llama2-chat", "Hello")
    except Err as error:
        match error.value:
            case Error_InvalidInput(message): ...

Sources: spin-sdk 3.4.1 and 5.0.0, whose `spin_sdk.wit` componentize-py wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from refllm import api

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

DEFAULT = api.InferencingParams()


# --- What every interface has --------------------------------------------------------------------


@dataclass
class Some(Generic[T]):
    """An option inside an option that is there."""

    value: T


@dataclass
class Ok(Generic[T]):
    """A result that is well."""

    value: T


# The SDK's is frozen, so that not even its traceback can be set, which contextlib does.
@dataclass
class Err(Exception, Generic[E]):
    """A result that is an error; raised, where a function gives it back."""

    value: E


Result = Ok[T] | Err[E]


# --- What this interface has ---------------------------------------------------------------------


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
    """The engine does not know this kind of model; the interface has no room for more words."""


@dataclass
class Error_RuntimeError:
    """Something broke while the request ran."""

    value: str


@dataclass
class Error_InvalidInput:
    """The request itself cannot be answered."""

    value: str


Error = Error_ModelNotSupported | Error_RuntimeError | Error_InvalidInput


@dataclass
class InferencingUsage:
    """Tokens of the prompt, and tokens drawn."""

    prompt_token_count: int
    generated_token_count: int


@dataclass
class InferencingResult:
    """The generated text, and what it took."""

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

    engine: api.Engine

    def infer(self, model: str, prompt: str, params: InferencingParams | None) -> InferencingResult:
        """The continuation of `prompt`. Errors: `Err` of an `Error`."""
        with _errors_of_the_interface():
            result = self.engine.infer(model, prompt, None if params is None else _params(params))
        usage = result.usage
        return InferencingResult(
            result.text, InferencingUsage(usage.prompt_token_count, usage.generated_token_count)
        )

    def generate_embeddings(self, model: str, text: Sequence[str]) -> EmbeddingsResult:
        """One vector for each text. Errors: `Err` of an `Error`."""
        with _errors_of_the_interface():
            result = self.engine.generate_embeddings(model, text)
        usage = EmbeddingsUsage(result.usage.prompt_token_count)
        return EmbeddingsResult([list(vector) for vector in result.embeddings], usage)


def _params(params: InferencingParams) -> api.InferencingParams:
    """The engine's record, from anything that has the fields, as componentize-py takes it."""
    names = [field.name for field in fields(api.InferencingParams)]
    return api.InferencingParams(**{name: getattr(params, name) for name in names})


@contextmanager
def _errors_of_the_interface() -> Iterator[None]:
    """The engine's errors, as a component sees them."""
    try:
        yield
    except api.ModelNotSupported as error:
        raise Err(Error_ModelNotSupported()) from error
    except api.InvalidInput as error:
        raise Err(Error_InvalidInput(str(error))) from error
    except api.LlmError as error:
        raise Err(Error_RuntimeError(str(error))) from error
