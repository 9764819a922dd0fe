"""What OpenAI's clients ask for, and what of it becomes the interface's parameters.

What is left out has the interface's defaults, not OpenAI's, because Spin's client leaves nearly all
of it out. `frequency_penalty` is the repeat penalty, because that is what Spin sends under this
name; 0, OpenAI's word for off, is off here too. What would change the answer and is not computed
here is refused by name; other unknown keys, such as `user`, change nothing and are let pass.

Source: OpenAI's API reference; Spin's crates/llm-remote-http (api type open_ai).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from refllm.api import U32_MAX, InferencingParams, InvalidInput

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingsRequest",
    "TextRequestBody",
]

T = TypeVar("T")

DEFAULT = InferencingParams()
OFF = 1.0
U64_MAX = 2**64 - 1
MOST_STOPS = 4
MOST_LIKELIEST = 20

U32 = Annotated[int, Field(ge=0, le=U32_MAX)]
F32 = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=U64_MAX)]
Stop = Annotated[str, Field(min_length=1)]

# What is not done here, and for each the value besides null that says what is done anyway.
REFUSED: Mapping[str, object] = {
    "audio": None,
    "best_of": 1,
    "echo": False,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "min_p": 0,
    "modalities": ["text"],
    "prediction": None,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "suffix": "",
    "tools": [],
}


class Lenient(BaseModel):
    """Unknown keys are kept, to be looked at; no text where a number belongs."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    def check_extras(self) -> None:
        """Raise `InvalidInput` for a key that asks for something which is not done here."""
        for key, value in (self.model_extra or {}).items():
            if key in REFUSED and value is not None and value != REFUSED[key]:
                raise InvalidInput(f"{key} is not supported here; leave it out")


class StreamOptions(Lenient):
    """What else a stream says."""

    include_usage: bool = False


class TextRequestBody(Lenient):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Seed | None = None
    temperature: F32 | None = None
    top_p: F32 | None = None
    top_k: U32 | None = None
    max_tokens: U32 | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    frequency_penalty: F32 | None = None
    n: Literal[1] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens that are asked for."""
        return self.max_tokens

    def params(self) -> InferencingParams:
        """The interface's six."""
        penalty = _either(self.frequency_penalty, DEFAULT.repeat_penalty)
        return InferencingParams(
            max_tokens=_either(self.wanted_tokens, DEFAULT.max_tokens),
            repeat_penalty=penalty if penalty != 0 else OFF,
            temperature=_either(self.temperature, DEFAULT.temperature),
            top_k=_either(self.top_k, DEFAULT.top_k),
            top_p=_either(self.top_p, DEFAULT.top_p),
        )


class Part(Lenient):
    """A part of a message; only text is read here."""

    type: str
    text: str | None = None


class Message(Lenient):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def as_text(self) -> dict[str, str]:
        """What a chat template reads; a developer is whom others call the system."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        other = [part.type for part in self.content if part.type != "text" or part.text is None]
        if other:
            raise InvalidInput(f"content of type {other[0]!r:.80} is not supported here; send text")
        return {"role": role, "content": "".join(part.text or "" for part in self.content)}


class ChatRequest(TextRequestBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: U32 | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """The newer name before the older."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def n_likeliest(self) -> int | None:
        """How many alternatives to each token are asked for; None: not even its own probability."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(TextRequestBody):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class EmbeddingsRequest(Lenient):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @property
    def texts(self) -> list[str]:
        """What is to be embedded."""
        return [self.input] if isinstance(self.input, str) else self.input


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
