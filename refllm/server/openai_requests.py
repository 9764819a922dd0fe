"""The bodies of OpenAI's requests, and their conversion to the interface's parameters.

Absent keys have the interface's defaults, not OpenAI's, because Spin's client omits most keys.
`refllm.server.openai_keys` has every key that is not a field here.

Spin's client sends the interface's repeat penalty as `frequency_penalty`, in a chat with exactly
four keys and one message of a user. In a request of that shape a value above 0 is the repeat
penalty; otherwise the key has OpenAI's meaning. OpenAI's clients can send that shape, too, but not
with the headers of Spin's client. A client that sends one of OpenAI's penalties, 0 included, has
chosen them: the repeat penalty is then off unless the request has it as well.

Each field's description is what its value must be; errors and the documentation quote it.

Source: OpenAI's API reference; Spin's crates/llm-remote-http (api type open_ai).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from refllm.errors import InvalidInput, how_to_install
from refllm.generate import GenerationOptions
from refllm.interface import U32_MAX, InferencingParams
from refllm.sampling import Adjustments
from refllm.server.openai_keys import (
    FORMAT_REFUSED,
    MESSAGE_REFUSED,
    PART_WITHOUT_EFFECT,
    REFUSED,
    STREAM_REFUSED,
    WITHOUT_EFFECT,
    KeyRefused,
    check_keys,
)
from refllm.tokenizer.grammar import JSON_OBJECT, Grammar, has_library, json_grammar

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingsRequest", "Message", "TextRequestBody"]

T = TypeVar("T")

DEFAULT = InferencingParams()
OFF = 1.0
U64_MAX = 2**64 - 1
MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_BIAS = 100
MAX_PENALTY = 2
SPIN_S_KEYS = {"messages", "model", "max_completion_tokens", "frequency_penalty"}

WHOLE = f"a whole number from 0 to {U32_MAX}"
PENALTY = f"a number from -{MAX_PENALTY} to {MAX_PENALTY}, 0 is off"
ABOVE_0 = "a number above 0, 1 is off"
TEXTS = "text, a list of texts, a list of token ids, or a list of lists of token ids; none empty"
WHOSE_IDS = (
    "is token ids, and may be another tokenizer's, which would give the vector of another text; "
    "send text: LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False. For ids "
    "of the model's own tokenizer, its special tokens included, add add_special_tokens false"
)
FLAG = "true or false"
SCHEMA = "a JSON schema, as an object or as the text of one"
SCHEMA_KEY = "response_format.json_schema.schema"

U32 = Annotated[int, Field(ge=0, le=U32_MAX)]
F32 = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=U64_MAX)]
Stop = Annotated[str, Field(min_length=1)]
TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")
TokenId = Annotated[str, Field(pattern=f"^({TOKEN_ID.pattern})$")]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
Penalty = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# fail_fast: collecting the errors of a million wrong values takes seconds, and one is reported.
Ids = Annotated[list[U32], Field(min_length=1, fail_fast=True)]
Texts = (
    str
    | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
)
NoTexts = Annotated[list[str], Field(max_length=0, fail_fast=True)]


class Lenient(BaseModel):
    """A body that keeps unknown keys for `check_keys`, and refuses text in place of a number."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @property
    def extras(self) -> dict[str, object]:
        """The keys that are not fields."""
        return self.model_extra or {}


class StreamOptions(Lenient):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description=FLAG)


class JsonSchema(Lenient):
    """The schema of an answer, as OpenAI's clients send it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = Field(
        description="1 to 64 letters, digits, underscores and dashes"
    )
    description: str | None = Field(None, description="text")
    schema_: dict[str, object] = Field(alias="schema", description="a JSON schema, as an object")
    strict: bool | None = Field(None, description=FLAG)


class ResponseFormat(Lenient):
    """The format of an answer."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description='"text", "json_object" or "json_schema"'
    )
    json_schema: JsonSchema | None = Field(
        None, description="an object with a name and a schema, for that type alone"
    )

    def check(self) -> None:
        """Raise `KeyRefused` for a key, or a value of it, that is not served."""
        served = type(self).model_fields
        check_keys(self.extras, served=served, refused=FORMAT_REFUSED, where="response_format.")
        if (self.json_schema is not None) != (self.type == "json_schema"):
            problem = "is missing; it" if self.json_schema is None else f"of type {self.type!r}"
            must_be = served["json_schema"].description
            raise KeyRefused("response_format.json_schema", f"{problem} must be {must_be}")
        if self.json_schema is not None:
            check_keys(
                self.json_schema.extras,
                served=("name", "description", "schema", "strict"),
                where="response_format.json_schema.",
            )


class TextRequestBody(Lenient):
    """The keys that chats and completions share."""

    model: str = Field(description="text")
    max_tokens: U32 | None = Field(None, description=WHOLE)
    temperature: F32 | None = Field(None, description="a number, 0 takes the likeliest token")
    top_p: F32 | None = Field(None, description="a number, 1 is off")
    top_k: U32 | None = Field(None, description=f"{WHOLE}, 0 is off")
    seed: Seed | None = Field(None, description=f"a whole number from 0 to {U64_MAX}")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = Field(
        None, description=f"text, or a list of at most {MAX_STOPS} texts; none empty"
    )
    stop_token_ids: Annotated[list[U32], Field(fail_fast=True)] | None = Field(
        None, description="a list of token ids"
    )
    ignore_eos: bool | None = Field(None, description=FLAG)
    min_tokens: U32 | None = Field(None, description=WHOLE)
    frequency_penalty: F32 | None = Field(None, description=PENALTY)
    presence_penalty: F32 | None = Field(None, description=PENALTY)
    repeat_penalty: Penalty | None = Field(None, description=ABOVE_0)
    repetition_penalty: Penalty | None = Field(None, description=ABOVE_0)
    repeat_last_n: U32 | None = Field(None, description=f"{WHOLE}, 0 is off")
    logit_bias: dict[TokenId, Bias] | None = Field(
        None, description=f"an object of token ids and numbers from -{MAX_BIAS} to {MAX_BIAS}"
    )
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description=f"a whole number from 1 to {MAX_CHOICES}"
    )
    response_format: ResponseFormat | None = Field(
        None, description="an object with the `type` text, json_object or json_schema"
    )
    json_schema: dict[str, object] | str | None = Field(None, description=SCHEMA)
    guided_json: dict[str, object] | str | None = Field(None, description=SCHEMA)
    stream: bool | None = Field(None, description=FLAG)
    stream_options: StreamOptions | None = Field(None, description="an object")

    def check(self) -> None:
        """Raise `KeyRefused` for a key, or a value of it, that is not served."""
        served = type(self).model_fields
        check_keys(self.extras, served=served, refused=REFUSED, without_effect=WITHOUT_EFFECT)
        options = self.stream_options
        if options is not None:
            fields = type(options).model_fields
            check_keys(
                options.extras, served=fields, refused=STREAM_REFUSED, where="stream_options."
            )
        if not self.is_spin_s:
            for key in ("frequency_penalty", "presence_penalty"):
                value = getattr(self, key)
                if value is not None and not -MAX_PENALTY <= value <= MAX_PENALTY:
                    raise KeyRefused(
                        key,
                        f"must be {PENALTY}; got {value!r} "
                        "(the repeat penalty of other servers is repeat_penalty)",
                    )
        penalties = {self.repeat_penalty, self.repetition_penalty} - {None}
        if len(penalties) > 1:
            raise KeyRefused("repetition_penalty", "is another name of repeat_penalty; send one")
        if self.response_format is not None:
            self.response_format.check()
        self.grammar()

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _one_wrong_bias(cls, biases: object) -> object:
        """Return only the first wrong bias, if any: collecting all errors can take seconds."""
        for token_id, value in biases.items() if isinstance(biases, dict) else ():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and -MAX_BIAS <= value <= MAX_BIAS and TOKEN_ID.fullmatch(token_id)):
                return {token_id: value}
        return biases

    @property
    def is_spin_s(self) -> bool:
        """Whether the request has the shape of Spin's client."""
        return False

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def n_choices(self) -> int:
        """The number of answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def token_limit(self) -> int | None:
        """The maximum number of tokens of the answer."""
        return self.max_tokens

    @property
    def schemas(self) -> dict[str, object]:
        """The JSON schemas of the answer, by their keys; `grammar` refuses several."""
        schemas = {"json_schema": self.json_schema, "guided_json": self.guided_json}
        wanted = self.response_format
        if wanted is not None and wanted.type == "json_object":
            schemas["response_format"] = dict(JSON_OBJECT)
        elif wanted is not None and wanted.json_schema is not None:
            schemas[SCHEMA_KEY] = wanted.json_schema.schema_
        return {key: schema for key, schema in schemas.items() if schema is not None}

    def grammar(self) -> Grammar | None:
        """Return the grammar of the answer. Raises `KeyRefused` with the key of a schema."""
        schemas = self.schemas
        if not schemas:
            return None
        *earlier, key = schemas
        if earlier:
            raise KeyRefused(earlier[0], f"and {key} both set the format of the answer; send one")
        if not has_library():
            raise KeyRefused(
                key, f"is not supported here; it needs llguidance: {how_to_install('grammar')}"
            )
        schema = schemas[key]
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
        except (ValueError, RecursionError) as error:
            raise KeyRefused(key, f"must be {SCHEMA}: {error}") from error
        if not isinstance(schema, dict):
            raise KeyRefused(key, f"must be {SCHEMA}; got {schema!r:.80}")
        try:
            return json_grammar(schema)
        except InvalidInput as error:
            raise KeyRefused(key, f"cannot be used: {error}") from error

    def params(self) -> InferencingParams:
        """Return the interface's parameters."""
        penalty = _either(self.repeat_penalty, self.repetition_penalty)
        if penalty is None and self._has_repeat_penalty_of_spin:
            penalty = self.frequency_penalty
        elif penalty is None and (self.frequency_penalty, self.presence_penalty) != (None, None):
            penalty = OFF
        return InferencingParams(
            max_tokens=_either(self.token_limit, DEFAULT.max_tokens),
            repeat_penalty=_either(penalty, DEFAULT.repeat_penalty),
            repeat_penalty_last_n_token_count=_either(
                self.repeat_last_n, DEFAULT.repeat_penalty_last_n_token_count
            ),
            temperature=_either(self.temperature, DEFAULT.temperature),
            top_k=_either(self.top_k, DEFAULT.top_k),
            top_p=_either(self.top_p, DEFAULT.top_p),
        )

    def generation_options(self) -> GenerationOptions:
        """Return the settings beyond the interface's parameters."""
        frequency = 0.0 if self._has_repeat_penalty_of_spin else self.frequency_penalty
        return GenerationOptions(
            adjustments=Adjustments(
                bias={int(token_id): value for token_id, value in (self.logit_bias or {}).items()},
                frequency_penalty=_either(frequency, 0.0),
                presence_penalty=_either(self.presence_penalty, 0.0),
            ),
            min_tokens=_either(self.min_tokens, 0),
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            grammar=self.grammar(),
        )

    @property
    def _has_repeat_penalty_of_spin(self) -> bool:
        return self.is_spin_s and _either(self.frequency_penalty, 0.0) > 0


class Part(Lenient):
    """A part of a message; only text is read here."""

    type: str = Field(description="text")
    text: str | None = Field(None, description="text")


class Message(Lenient):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description='"system", "developer", "user" or "assistant"'
    )
    content: str | Annotated[list[Part], Field(fail_fast=True)] = Field(
        description="text, or a list of parts of type text"
    )
    name: str | None = Field(None, description="text")
    reasoning_content: str | None = Field(None, description="text")
    reasoning: str | None = Field(None, description="text")
    thinking: str | None = Field(None, description="text")

    def as_text(self, where: str) -> dict[str, str]:
        """Return the message for a chat template; the role `developer` becomes `system`.

        Raises `KeyRefused` for unsupported parts, which are named after `where`.
        """
        served = type(self).model_fields
        check_keys(self.extras, served=served, refused=MESSAGE_REFUSED, where=f"{where}.")
        named = {"role": "system" if self.role == "developer" else self.role}
        for key in ("name", "reasoning_content", "reasoning", "thinking"):
            value = getattr(self, key)
            if value is not None:
                named[key] = value
        if isinstance(self.content, str):
            return {**named, "content": self.content}
        for i, part in enumerate(self.content):
            place = f"{where}.content[{i}]"
            if part.type != "text" or part.text is None:
                raise KeyRefused(
                    place, f"of type {part.type!r:.80} is not supported here; send text"
                )
            check_keys(
                part.extras,
                served=type(part).model_fields,
                without_effect=PART_WITHOUT_EFFECT,
                where=f"{place}.",
            )
        return {**named, "content": "".join(part.text or "" for part in self.content)}


class ChatRequest(TextRequestBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] = Field(
        description="a list of at least one message"
    )
    max_completion_tokens: U32 | None = Field(None, description=WHOLE)
    logprobs: bool | None = Field(None, description=FLAG)
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description=f"a whole number from 0 to {MAX_LOGPROBS}"
    )

    def check(self) -> None:
        """Raise `KeyRefused` for a key, or a value of it, that is not served."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise KeyRefused("top_logprobs", "needs logprobs true")

    @property
    def is_spin_s(self) -> bool:
        """Whether the request has the shape of Spin's client: these keys, and a user's message."""
        if {*self.model_fields_set, *self.extras} != SPIN_S_KEYS or len(self.messages) != 1:
            return False
        [message] = self.messages
        is_plain = {*message.model_fields_set, *message.extras} == {"role", "content"}
        return is_plain and message.role == "user" and isinstance(message.content, str)

    def as_openai_s(self) -> ChatRequest:
        """Return the request with OpenAI's meaning of its keys, whatever its shape."""
        return self.model_copy(update={"presence_penalty": 0.0}) if self.is_spin_s else self

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages for a chat template."""
        return [message.as_text(f"messages[{i}]") for i, message in enumerate(self.messages)]

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, the newer name, or `max_tokens`."""
        return _either(self.max_completion_tokens, self.max_tokens)

    @property
    def n_top_logprobs(self) -> int | None:
        """The number of alternatives to each token; None without `logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(TextRequestBody):
    """POST /v1/completions."""

    prompt: Texts = Field(description=TEXTS)
    echo: bool | None = Field(None, description=FLAG)
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description=f"a whole number from 0 to {MAX_LOGPROBS}"
    )

    def check(self) -> None:
        """Raise `KeyRefused` for a key, or a value of it, that is not served."""
        super().check()
        if self.echo and self.logprobs is not None:
            raise KeyRefused("echo", "with logprobs is not supported here: a prompt's are unknown")

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts."""
        return _each(self.prompt)


class EmbeddingsRequest(Lenient):
    """POST /v1/embeddings."""

    model: str = Field(description="text")
    input: Texts | NoTexts = Field(description=TEXTS)
    max_tokens: Annotated[int, Field(ge=1, le=U32_MAX)] | None = Field(
        None, description="a whole number above 0"
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=1, le=U32_MAX)] | None = Field(
        None, description="a whole number above 0"
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description='"float" or "base64"'
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="the width of the model's vectors"
    )
    add_special_tokens: bool | None = Field(None, description="true, or with token ids false")

    def check(self, *, is_spin_s: bool = False, is_openai_s: bool = False) -> None:
        """Raise `KeyRefused` for a key, or a value of it, that is not served.

        Args:
            is_spin_s: Whether the client is Spin's, which may send an empty list and reads an empty
                answer; other clients expect OpenAI's error.
            is_openai_s: Whether the client is OpenAI's own package, with which LangChain sends ids
                of OpenAI's tokenizer; ids then need `add_special_tokens` false.
        """
        if not self.input and not isinstance(self.input, str) and not is_spin_s:
            raise KeyRefused("input", f"must be {TEXTS}; got []")
        served = type(self).model_fields
        check_keys(self.extras, served=served, refused=REFUSED, without_effect=WITHOUT_EFFECT)
        limits = {self.max_tokens, self.truncate_prompt_tokens} - {None}
        if len(limits) > 1:
            raise KeyRefused("truncate_prompt_tokens", "is another name of max_tokens; send one")
        is_complete = self.add_special_tokens is False
        if any(isinstance(text, str) for text in self.texts):
            if is_complete:
                raise KeyRefused("add_special_tokens", "false is for token ids; leave it out")
        elif self.texts and is_openai_s and not is_complete:
            raise KeyRefused("input", WHOSE_IDS)

    @property
    def texts(self) -> Sequence[str | Sequence[int]]:
        """The texts to embed, or their token ids."""
        return _each(self.input)

    @property
    def text_limit(self) -> int | None:
        """The number of tokens at which a text is cut; None is the model's own limit."""
        return _either(self.max_tokens, self.truncate_prompt_tokens)


def _each(texts: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Return a list of texts or token ids, also for a single one."""
    if isinstance(texts, str):
        return [texts]
    ids = [item for item in texts if isinstance(item, int)]
    return [ids] if ids else [item for item in texts if not isinstance(item, int)]


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
