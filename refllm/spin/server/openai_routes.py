"""The routes of OpenAI's clients: chats, completions, embeddings, models; streams as they expect.

Source: OpenAI's API reference, and what its Python client reads and raises.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from numpy.typing import NDArray

from refllm.api import InvalidInput, LlmError
from refllm.spin.server.answers import unless_gone
from refllm.spin.server.errors import openai_error, status_of
from refllm.spin.server.jobs import Begun, Chat, Done
from refllm.spin.server.names import model_names
from refllm.spin.server.openai_answers import (
    Piece,
    Scored,
    chat_logprobs,
    completion_logprobs,
    pieces,
    usage,
)
from refllm.spin.server.openai_requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    TextRequestBody,
)
from refllm.spin.server.service import Service, TextRequest
from refllm.tokenizer import Tokenizer

__all__ = ["router_of"]

Floats = NDArray[np.float32]
JSON = Mapping[str, object]
Parts = AsyncIterator[Begun | Piece | Done]
# For the schema: what is answered may come as a stream.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
END_OF_STREAM = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is written: as a chat's message, or as a completion's text."""

    id_prefix: str
    whole: str  # the name of an answer's kind
    part: str  # of a streamed part's
    choice: Callable[[str, JSON | None], JSON]
    delta: Callable[[str, JSON | None], JSON]
    logprobs: Callable[[Sequence[Scored], Tokenizer], JSON]
    first_delta: JSON | None


CHAT = Form(
    id_prefix="chatcmpl-",
    whole="chat.completion",
    part="chat.completion.chunk",
    choice=lambda text, logprobs: {
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": logprobs,
    },
    delta=lambda text, logprobs: {"delta": {"content": text}, "logprobs": logprobs},
    logprobs=chat_logprobs,
    first_delta={"delta": {"role": "assistant", "content": ""}, "logprobs": None},
)
COMPLETION = Form(
    id_prefix="cmpl-",
    whole="text_completion",
    part="text_completion",
    choice=lambda text, logprobs: {"text": text, "logprobs": logprobs},
    delta=lambda text, logprobs: {"text": text, "logprobs": logprobs},
    logprobs=completion_logprobs,
    first_delta=None,
)
NO_DELTA: Mapping[str, JSON] = {
    CHAT.part: {"delta": {}, "logprobs": None},
    COMPLETION.part: {"text": "", "logprobs": None},
}


def router_of(service: Service) -> APIRouter:
    """All four routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/chat/completions", responses=STREAMED)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """The next message of a chat."""
        body.check_extras()
        messages = [message.as_text() for message in body.messages]
        return await _answer(service, request, body, messages, body.n_likeliest, CHAT)

    @router.post("/completions", responses=STREAMED)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """The continuation of a prompt."""
        body.check_extras()
        return await _answer(service, request, body, body.text, body.logprobs, COMPLETION)

    @router.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
        """One vector for each text."""
        body.check_extras()
        vectors, done = await unless_gone(request, service.embed(body.model, body.texts))
        width = vectors.shape[1]
        if body.dimensions not in (None, width):
            raise InvalidInput(f"dimensions is {body.dimensions}, the model's vectors have {width}")
        written = _in_base64 if body.encoding_format == "base64" else _as_numbers
        data = [
            {"object": "embedding", "index": i, "embedding": written(vector)}
            for i, vector in enumerate(vectors)
        ]
        used = {"prompt_tokens": done.n_prompt_tokens, "total_tokens": done.n_prompt_tokens}
        model = service.worker.engine.answering_model(body.model)
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": used})

    @router.get("/models")
    def models() -> Response:
        """The models that can be asked."""
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": owner}
            for name, owner in model_names(service.worker.engine)
        ]
        return JSONResponse({"object": "list", "data": data})

    return router


async def _answer(
    service: Service,
    request: Request,
    body: TextRequestBody,
    prompt: str | Chat,
    n_likeliest: int | None,
    form: Form,
) -> Response:
    asked = TextRequest(
        model=body.model,
        prompt=prompt,
        params=body.params(),
        seed=body.seed,
        n_likeliest=n_likeliest,
        is_streamed=bool(body.stream or body.stops),
    )
    parts = pieces(service.text(asked), body.stops)
    head = {"id": f"{form.id_prefix}{uuid.uuid4().hex}", "created": int(time.time())}
    if not body.stream:
        return await unless_gone(request, _whole(parts, head, form))
    # What is refused is refused before the answer has a status.
    begun = await unless_gone(request, _first(parts))
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    events = _events(parts, begun, head, form, wants_usage=wants_usage)
    return StreamingResponse(events, media_type="text/event-stream")


async def _first(parts: Parts) -> Begun:
    begun = await anext(parts)
    assert isinstance(begun, Begun)
    return begun


async def _whole(parts: Parts, head: JSON, form: Form) -> Response:
    """The answer in one piece."""
    begun = await _first(parts)
    text: list[str] = []
    tokens: list[Scored] = []
    done = Done(begun.n_prompt_tokens)
    async for part in parts:
        if isinstance(part, Piece):
            text.append(part.text)
            tokens += part.tokens
        elif isinstance(part, Done):
            done = part
    logprobs = form.logprobs(tokens, begun.tokenizer) if tokens else None
    choice = {"index": 0, "finish_reason": done.reason, **form.choice("".join(text), logprobs)}
    whole = {**head, "object": form.whole, "model": begun.model, "choices": [choice]}
    return JSONResponse({**whole, "usage": usage(done)})


async def _events(
    parts: Parts, begun: Begun, head: JSON, form: Form, *, wants_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    head = {**head, "object": form.part, "model": begun.model}

    def event(choice: JSON, reason: str | None = None) -> str:
        return _sent({**head, "choices": [{"index": 0, "finish_reason": reason, **choice}]})

    if form.first_delta is not None:
        yield event(form.first_delta)
    try:
        async for part in parts:
            if isinstance(part, Piece):
                logprobs = form.logprobs(part.tokens, begun.tokenizer) if part.tokens else None
                yield event(form.delta(part.text, logprobs))
            elif isinstance(part, Done):
                yield event(NO_DELTA[form.part], part.reason)
                if wants_usage:
                    yield _sent({**head, "choices": [], "usage": usage(part)})
    except LlmError as error:
        yield _sent(openai_error(status_of(error), error.kind, str(error)))
    yield END_OF_STREAM


def _sent(value: JSON) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _as_numbers(vector: Floats) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _in_base64(vector: Floats) -> str:
    """Little-endian float32, as OpenAI's client asks for unless told otherwise."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
