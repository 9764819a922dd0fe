"""POST /infer and POST /embed: the protocol of Spin's `remote_http`.

The names are those of its JSON. Numbers are the interface's, u32 or f32. A key that the protocol
does not have is refused, because the client expects an effect of it.

Source: Spin's crates/llm-remote-http (default api type).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from refllm.errors import InvalidInput
from refllm.generate import Chunk
from refllm.interface import U32_MAX, InferencingParams
from refllm.server.jobs import Echo, Finished, TextRequest
from refllm.server.service import Service, cancel_on_disconnect

__all__ = ["EmbedRequest", "InferRequest", "Options", "router_of"]

DEFAULT = InferencingParams()

WHOLE = f"a whole number from 0 to {U32_MAX}"

U32 = Annotated[int, Field(ge=0, le=U32_MAX)]
F32 = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """A body that refuses unknown keys, and text in place of a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_key(cls, body: object) -> object:
        """Keep only the first unknown key: collecting an error for each can take seconds."""
        if not isinstance(body, dict):
            return body
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = (key for key in body if key not in known)
        kept = {*known, next(unknown, None)}
        return {key: value for key, value in body.items() if key in kept}


class Options(Strict):
    """The interface's six parameters."""

    max_tokens: U32 = Field(default=DEFAULT.max_tokens, alias="maxTokens", description=WHOLE)
    repeat_penalty: F32 = Field(
        default=DEFAULT.repeat_penalty,
        alias="repeatPenalty",
        description="a number above 0, 1 is off",
    )
    repeat_penalty_last_n_token_count: U32 = Field(
        default=DEFAULT.repeat_penalty_last_n_token_count,
        alias="repeatPenaltyLastNTokenCount",
        description=f"{WHOLE}, 0 is off",
    )
    temperature: F32 = Field(
        default=DEFAULT.temperature, description="a number, 0 takes the likeliest token"
    )
    top_k: U32 = Field(default=DEFAULT.top_k, alias="topK", description=f"{WHOLE}, 0 is off")
    top_p: F32 = Field(default=DEFAULT.top_p, alias="topP", description="a number, 1 is off")

    def params(self) -> InferencingParams:
        """Return the parameters. Raises `InvalidInput` with the protocol's name of the key."""
        params = InferencingParams(**self.model_dump())
        try:
            params.check()
        except InvalidInput as error:
            name, _, problem = str(error).partition(" ")
            key = type(self).model_fields[name].alias or name
            raise InvalidInput(f"options.{key} {problem}") from error
        return params


class InferRequest(Strict):
    """A prompt to be continued."""

    model: str = Field(description="text")
    prompt: str = Field(description="text")
    options: Options = Field(Options(), description="an object")


class InferUsage(BaseModel):
    """Tokens of the prompt, and sampled tokens."""

    promptTokenCount: int  # noqa: N815 - the protocol's name
    generatedTokenCount: int  # noqa: N815


class InferResponse(BaseModel):
    """The continuation."""

    text: str
    usage: InferUsage


class EmbedRequest(Strict):
    """Texts to be embedded."""

    model: str = Field(description="text")
    input: Annotated[list[str], Field(fail_fast=True)] = Field(description="a list of texts")
    max_tokens: Annotated[int, Field(ge=1, le=U32_MAX)] | None = Field(
        default=None, alias="maxTokens", description="a whole number above 0, or left out"
    )


class EmbedUsage(BaseModel):
    """Tokens of all texts."""

    promptTokenCount: int  # noqa: N815 - the protocol's name


class EmbedResponse(BaseModel):
    """A vector for each text."""

    embeddings: list[list[float]]
    usage: EmbedUsage
    truncated: list[bool] | None = Field(
        default=None, description="of each text whether it was cut; left out where none was"
    )


def router_of(service: Service) -> APIRouter:
    """Return both routes."""
    router = APIRouter(tags=["Spin"])

    @router.post("/infer", response_model=InferResponse)
    async def infer(request: Request, body: InferRequest) -> Response:
        """Continue a prompt."""
        params = body.options.params()
        text_request = TextRequest(model=body.model, prompt=body.prompt, params=params)

        async def answer() -> tuple[str, Finished]:
            *chunks, end = [event async for event in service.text(text_request)]
            assert isinstance(end, Finished)
            return "".join(part.text for part in chunks if isinstance(part, Chunk | Echo)), end

        text, end = await cancel_on_disconnect(request, answer())
        usage = InferUsage(
            promptTokenCount=end.n_prompt_tokens, generatedTokenCount=end.n_generated_tokens
        )
        return JSONResponse({"text": text, "usage": usage.model_dump()})

    @router.post("/embed", response_model=EmbedResponse)
    async def embed(request: Request, body: EmbedRequest) -> Response:
        """Return one vector for each text."""
        embedding = service.embed(body.model, body.input, max_tokens=body.max_tokens)
        try:
            vectors, end = await cancel_on_disconnect(request, embedding)
        except InvalidInput as error:
            if str(error).startswith("max_tokens "):
                raise InvalidInput(str(error).replace("max_tokens", "maxTokens", 1)) from error
            raise
        usage = EmbedUsage(promptTokenCount=end.n_prompt_tokens)
        # A key that Spin's protocol does not have; its client skips it.
        truncated = {"truncated": end.is_cut} if any(end.is_cut) else {}
        answer = {"embeddings": vectors.tolist(), "usage": usage.model_dump(), **truncated}
        return JSONResponse(answer)

    return router
