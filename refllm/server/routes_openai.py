"""The routes of OpenAI's clients: chats, completions, embeddings, models; streams as they expect.

Source: OpenAI's API reference, and what its Python client reads and raises.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from numpy.typing import NDArray

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError
from refllm.models.find import MODEL_NOT_FOUND
from refllm.server.answers import aside, merged, unless_gone
from refllm.server.errors import UNAVAILABLE, openai_error, status_of
from refllm.server.jobs import Begun, Done, Prompt
from refllm.server.names import model_names
from refllm.server.openai_answers import (
    Piece,
    Scored,
    chat_logprobs,
    completion_logprobs,
    pieces,
    usage,
)
from refllm.server.openai_keys import KeyRefused
from refllm.server.openai_requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    TextRequestBody,
)
from refllm.server.service import Service, TextRequest
from refllm.server.worker import Unavailable
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.grammar import Grammar, try_grammar

__all__ = ["router_of"]

Floats = NDArray[np.float32]
JSON = Mapping[str, object]
# Of each choice, by its index: a `Begun`, pieces, and a `Done`.
Parts = AsyncGenerator[tuple[int, Begun | Piece | Done]]
# For the schema: what is answered may come as a stream.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
SEEDS = 2**64
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
    """All of OpenAI's routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    def owners_by_name() -> dict[str, str]:
        return dict(model_names(service.worker.engine))

    @router.post("/chat/completions", responses=STREAMED)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """The next message of a chat."""
        if not _is_spin_s(request):
            body = body.as_openai_s()
        body.check()
        return await _answer(service, request, body, [body.chat], body.n_likeliest, CHAT)

    @router.post("/completions", responses=STREAMED)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """The continuation of a prompt."""
        body.check()
        return await _answer(service, request, body, body.prompts, body.logprobs, COMPLETION)

    @router.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
        """One vector for each text."""
        # Each of OpenAI's packages names its language in this header.
        is_openai_s = "x-stainless-lang" in request.headers
        body.check(is_spin_s=_is_spin_s(request), is_openai_s=is_openai_s)
        embedding = service.embed(body.model, body.texts, max_tokens=body.text_limit)
        vectors, done = await unless_gone(request, embedding)
        width = vectors.shape[1]
        if body.dimensions not in (None, width):
            problem = f"is {body.dimensions}, the model's vectors have {width} numbers"
            raise KeyRefused("dimensions", problem)
        written = _in_base64 if body.encoding_format == "base64" else _as_numbers
        data = [
            {"object": "embedding", "index": i, "embedding": written(vector), "truncated": is_cut}
            for i, (vector, is_cut) in enumerate(zip(vectors, done.is_cut, strict=True))
        ]
        used = {"prompt_tokens": done.n_prompt_tokens, "total_tokens": done.n_prompt_tokens}
        model = service.worker.engine.answering_model(body.model)
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": used})

    @router.get("/models")
    async def models() -> Response:
        """The models that can be asked."""
        owners = await service.in_time(aside(owners_by_name))
        data = [_model(name, owner) for name, owner in owners.items()]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/models/{model}")
    async def model(model: str) -> Response:
        """One of the models that can be asked."""
        owners = await service.in_time(aside(owners_by_name))
        if model not in owners:
            raise InvalidInput(
                f"there is no model {model!r:.80} here; GET /v1/models has the list",
                code=MODEL_NOT_FOUND,
            )
        return JSONResponse(_model(model, owners[model]))

    return router


def _is_spin_s(request: Request) -> bool:
    """Whether Spin's client asks: `bearer` in lower case and no user agent are its headers."""
    scheme, *_ = request.headers.get("authorization", "").split(" ")
    return scheme == "bearer" and "user-agent" not in request.headers


def _model(name: str, owner: str) -> JSON:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def _answer(
    service: Service,
    request: Request,
    body: TextRequestBody,
    prompts: Sequence[Prompt],
    n_likeliest: int | None,
    form: Form,
) -> Response:
    """Return the choices of each prompt, the first prompt's first."""
    service.limits.check_choices(len(prompts) * body.n_choices)
    seed = service.worker.engine.seed if body.seed is None else body.seed
    wishes = body.wishes()
    if wishes.grammar is not None:
        trial = aside(_try_grammar, wishes.grammar, next(iter(body.schemas)))
        await unless_gone(request, service.in_time(trial))
    choices = [
        TextRequest(
            model=body.model,
            prompt=prompt,
            params=body.params(),
            seed=(seed + i) % SEEDS,
            wishes=wishes,
            is_echoed=isinstance(body, CompletionRequest) and bool(body.echo),
            is_message=form is CHAT and not body.is_spin_s,
            n_likeliest=n_likeliest,
            is_streamed=bool(body.stream or body.stops),
        )
        for prompt in prompts
        for i in range(body.n_choices)
    ]
    parts = merged(
        [
            pieces(service.text(choice), body.stops, min_tokens=wishes.min_tokens)
            for choice in choices
        ]
    )
    head = {"id": f"{form.id_prefix}{uuid.uuid4().hex}", "created": int(time.time())}
    if not body.stream:
        return await unless_gone(request, _whole(parts, head, form, body.n_choices))
    # What is refused is refused before the answer has a status.
    first = await unless_gone(request, anext(parts))
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    events = _events(parts, first, head, form, n_choices=body.n_choices, wants_usage=wants_usage)
    return StreamingResponse(events, media_type="text/event-stream")


def _try_grammar(grammar: Grammar, key: str) -> None:
    """Compile the grammar of a key, away from this process. Errors: `KeyRefused`."""
    try:
        try_grammar(grammar)
    except InvalidInput as error:
        raise KeyRefused(key, f"cannot be used: {error}") from error


async def _whole(parts: Parts, head: JSON, form: Form, n_choices: int) -> Response:
    """The answer in one piece."""
    begun: dict[int, Begun] = {}
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[Scored]] = {}
    done: dict[int, Done] = {}
    async with contextlib.aclosing(parts):
        async for index, part in parts:
            if isinstance(part, Begun):
                begun[index] = part
                texts[index], tokens[index] = [], []
            elif isinstance(part, Piece):
                texts[index].append(part.text)
                tokens[index] += part.tokens
            else:
                done[index] = part
    choices = [
        {
            "index": index,
            "finish_reason": done[index].reason,
            **form.choice(
                "".join(texts[index]),
                form.logprobs(tokens[index], begun[index].tokenizer) if tokens[index] else None,
            ),
        }
        for index in sorted(begun)
    ]
    whole = {**head, "object": form.whole, "model": begun[0].model, "choices": choices}
    ends = [done[index] for index in sorted(done)]
    return JSONResponse({**whole, "usage": usage(ends, n_choices)})


async def _events(
    parts: Parts,
    first: tuple[int, Begun | Piece | Done],
    head: JSON,
    form: Form,
    *,
    n_choices: int,
    wants_usage: bool,
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    _, begun = first
    assert isinstance(begun, Begun)
    head = {**head, "object": form.part, "model": begun.model}
    done: dict[int, Done] = {}

    def event(index: int, choice: JSON, reason: str | None = None) -> str:
        return _sent({**head, "choices": [{"index": index, "finish_reason": reason, **choice}]})

    async def all_parts() -> Parts:
        yield first
        async for each in parts:
            yield each

    try:
        async for index, part in all_parts():
            if isinstance(part, Begun):
                if form.first_delta is not None:
                    yield event(index, form.first_delta)
            elif isinstance(part, Piece):
                logprobs = form.logprobs(part.tokens, begun.tokenizer) if part.tokens else None
                yield event(index, form.delta(part.text, logprobs))
            else:
                done[index] = part
                yield event(index, NO_DELTA[form.part], part.reason)
        if wants_usage:
            ends = [done[index] for index in sorted(done)]
            yield _sent({**head, "choices": [], "usage": usage(ends, n_choices)})
    except LlmError as error:  # as `Service` tells it
        status = status_of(error, "openai")
        yield _sent(openai_error(status, error.kind, str(error), code=error.code))
    except Unavailable as error:
        yield _sent(openai_error(503, LlmRuntimeError.kind, UNAVAILABLE[type(error)]))
    finally:
        await parts.aclose()
    yield END_OF_STREAM


def _sent(value: JSON) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _as_numbers(vector: Floats) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _in_base64(vector: Floats) -> str:
    """Little-endian float32, as OpenAI's client asks for unless told otherwise."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
