"""The routes of OpenAI's clients: chats, completions, embeddings, models, and streams.

Source: OpenAI's API reference, and what its Python client reads and raises.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput, LlmError, LlmRuntimeError
from refllm.models.bundled import STAND_INS
from refllm.models.find import MODEL_NOT_FOUND, list_models
from refllm.server.errors import UNAVAILABLE, openai_error, status_of
from refllm.server.jobs import Finished, Prompt, Started, TextRequest
from refllm.server.openai_answers import (
    Piece,
    PlacedToken,
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
from refllm.server.service import Service, cancel_on_disconnect
from refllm.server.worker import Unavailable
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.grammar import Grammar, try_grammar

__all__ = ["router_of"]

T = TypeVar("T")
JSON = Mapping[str, object]
# For each choice, with its index: a `Started`, pieces, and a `Finished`.
Parts = AsyncGenerator[tuple[int, Started | Piece | Finished]]
# For the schema: the answer may be a stream.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
SEEDS = 2**64
END_OF_STREAM = "data: [DONE]\n\n"
OWNER = "refllm"


@dataclass(frozen=True, slots=True)
class Layout:
    """The JSON of an answer: a chat's message, or a completion's text."""

    id_prefix: str
    whole: str  # `object` of an answer
    part: str  # `object` of a streamed part
    choice: Callable[[str, JSON | None], JSON]
    delta: Callable[[str, JSON | None], JSON]
    logprobs: Callable[[Sequence[PlacedToken], Tokenizer], JSON]
    first_delta: JSON | None
    last_delta: JSON


CHAT = Layout(
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
    last_delta={"delta": {}, "logprobs": None},
)
COMPLETION = Layout(
    id_prefix="cmpl-",
    whole="text_completion",
    part="text_completion",
    choice=lambda text, logprobs: {"text": text, "logprobs": logprobs},
    delta=lambda text, logprobs: {"text": text, "logprobs": logprobs},
    logprobs=completion_logprobs,
    first_delta=None,
    last_delta={"text": "", "logprobs": None},
)


def router_of(service: Service) -> APIRouter:
    """Return OpenAI's routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    async def owners_by_name() -> dict[str, str]:
        return await service.in_time(_in_thread(partial(_owners_by_name, service.worker.engine)))

    @router.post("/chat/completions", responses=STREAMED)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a chat with its next message."""
        if not _is_spin_s(request):
            body = body.as_openai_s()
        body.check()
        return await _answer(service, request, body, [body.chat], body.n_top_logprobs, CHAT)

    @router.post("/completions", responses=STREAMED)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue prompts."""
        body.check()
        return await _answer(service, request, body, body.prompts, body.logprobs, COMPLETION)

    @router.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
        """Return one vector for each text."""
        # OpenAI's package for each language sends this header.
        is_openai_s = "x-stainless-lang" in request.headers
        body.check(is_spin_s=_is_spin_s(request), is_openai_s=is_openai_s)
        embedding = service.embed(body.model, body.texts, max_tokens=body.text_limit)
        vectors, end = await cancel_on_disconnect(request, embedding)
        width = vectors.shape[1]
        if body.dimensions not in (None, width):
            problem = f"is {body.dimensions}, the model's vectors have {width} numbers"
            raise KeyRefused("dimensions", problem)
        encoded: Sequence[object] = vectors.tolist()
        if body.encoding_format == "base64":  # little-endian float32, the client's default
            encoded = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
        data = [
            {"object": "embedding", "index": i, "embedding": vector, "truncated": is_cut}
            for i, (vector, is_cut) in enumerate(zip(encoded, end.is_cut, strict=True))
        ]
        used = {"prompt_tokens": end.n_prompt_tokens, "total_tokens": end.n_prompt_tokens}
        model = service.worker.engine.answering_model(body.model)
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": used})

    @router.get("/models")
    async def models() -> Response:
        """List the models."""
        data = [_model(name, owner) for name, owner in (await owners_by_name()).items()]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/models/{model}")
    async def model(model: str) -> Response:
        """Describe one model."""
        owners = await owners_by_name()
        if model not in owners:
            raise InvalidInput(
                f"there is no model {model!r:.80} here; GET /v1/models has the list",
                code=MODEL_NOT_FOUND,
            )
        return JSONResponse(_model(model, owners[model]))

    return router


def _owners_by_name(engine: LocalEngine) -> dict[str, str]:
    """Return the owner of each model that clients may use; a stand-in's names the model."""
    found = {model.name: OWNER for model in list_models(engine.roots)}
    stand_ins = {
        name: f"{OWNER}: {engine.answering_model(name)} stands in"
        for name in STAND_INS
        if engine.answering_model(name) != name
    }
    return {n: owner for n, owner in (stand_ins | found).items() if engine.allows(n)}


async def _in_thread(work: Callable[[], T]) -> T:
    """Return the result of `work`, computed in another thread, which a cancelled caller leaves."""
    return await to_thread.run_sync(work, abandon_on_cancel=True)


def _is_spin_s(request: Request) -> bool:
    """Return whether the client is Spin's: it sends `bearer` in lower case and no user agent."""
    scheme, *_ = request.headers.get("authorization", "").split(" ")
    return scheme == "bearer" and "user-agent" not in request.headers


def _model(name: str, owner: str) -> JSON:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def _answer(
    service: Service,
    request: Request,
    body: TextRequestBody,
    prompts: Sequence[Prompt],
    top_logprobs: int | None,
    layout: Layout,
) -> Response:
    """Return the choices of each prompt, the first prompt's first."""
    service.limits.check_choices(len(prompts) * body.n_choices)
    seed = service.worker.engine.seed if body.seed is None else body.seed
    generation_options = body.generation_options()
    if generation_options.grammar is not None:
        trial = _in_thread(
            partial(_try_grammar, generation_options.grammar, next(iter(body.schemas)))
        )
        await cancel_on_disconnect(request, service.in_time(trial))
    choices = [
        TextRequest(
            model=body.model,
            prompt=prompt,
            params=body.params(),
            seed=(seed + i) % SEEDS,
            generation_options=generation_options,
            is_echoed=isinstance(body, CompletionRequest) and bool(body.echo),
            is_message=layout is CHAT and not body.is_spin_s,
            top_logprobs=top_logprobs,
            is_streamed=bool(body.stream or body.stops),
        )
        for prompt in prompts
        for i in range(body.n_choices)
    ]
    parts = _merged(
        [
            pieces(service.text(choice), body.stops, min_tokens=generation_options.min_tokens)
            for choice in choices
        ]
    )
    head = {"id": f"{layout.id_prefix}{uuid.uuid4().hex}", "created": int(time.time())}
    if not body.stream:
        return await cancel_on_disconnect(request, _whole(parts, head, layout, body.n_choices))
    # An error before the first event still has a status.
    first = await cancel_on_disconnect(request, anext(parts))
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    events = _events(parts, first, head, layout, n_choices=body.n_choices, wants_usage=wants_usage)
    return StreamingResponse(events, media_type="text/event-stream")


def _try_grammar(grammar: Grammar, key: str) -> None:
    """Compile the grammar of a key in another process. Raises `KeyRefused`."""
    try:
        try_grammar(grammar)
    except InvalidInput as error:
        raise KeyRefused(key, f"cannot be used: {error}") from error


async def _merged(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Yield the items of several sources as they arrive, each with its source's number.

    Raises:
        Exception: The first that a source raises. All sources are closed then, and also when the
            caller stops.
    """
    arrived: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(number: int, source: AsyncGenerator[T]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for item in source:
                    arrived.put_nowait((number, item))
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's task
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)

    tasks = [asyncio.create_task(pump(number, source)) for number, source in enumerate(sources)]
    try:
        n_left = len(tasks)
        while n_left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                n_left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(parts: Parts, head: JSON, layout: Layout, n_choices: int) -> Response:
    """Return the answer in one piece."""
    started: dict[int, Started] = {}
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[PlacedToken]] = {}
    ends: dict[int, Finished] = {}
    async with contextlib.aclosing(parts):
        async for index, part in parts:
            if isinstance(part, Started):
                started[index] = part
                texts[index], tokens[index] = [], []
            elif isinstance(part, Piece):
                texts[index].append(part.text)
                tokens[index] += part.tokens
            else:
                ends[index] = part
    choices = [
        {
            "index": index,
            "finish_reason": ends[index].reason,
            **layout.choice(
                "".join(texts[index]),
                layout.logprobs(tokens[index], started[index].tokenizer) if tokens[index] else None,
            ),
        }
        for index in sorted(started)
    ]
    whole = {**head, "object": layout.whole, "model": started[0].model, "choices": choices}
    in_order = [ends[index] for index in sorted(ends)]
    return JSONResponse({**whole, "usage": usage(in_order, n_choices)})


async def _events(
    parts: Parts,
    first: tuple[int, Started | Piece | Finished],
    head: JSON,
    layout: Layout,
    *,
    n_choices: int,
    wants_usage: bool,
) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    _, started = first
    assert isinstance(started, Started)
    head = {**head, "object": layout.part, "model": started.model}
    ends: dict[int, Finished] = {}

    def event(index: int, choice: JSON, reason: str | None = None) -> str:
        return _sse({**head, "choices": [{"index": index, "finish_reason": reason, **choice}]})

    async def all_parts() -> Parts:
        yield first
        async for each in parts:
            yield each

    try:
        async for index, part in all_parts():
            if isinstance(part, Started):
                if layout.first_delta is not None:
                    yield event(index, layout.first_delta)
            elif isinstance(part, Piece):
                logprobs = layout.logprobs(part.tokens, started.tokenizer) if part.tokens else None
                yield event(index, layout.delta(part.text, logprobs))
            else:
                ends[index] = part
                yield event(index, layout.last_delta, part.reason)
        if wants_usage:
            in_order = [ends[index] for index in sorted(ends)]
            yield _sse({**head, "choices": [], "usage": usage(in_order, n_choices)})
    except LlmError as error:  # already a message for clients
        status = status_of(error, "openai")
        yield _sse(openai_error(status, error.kind, str(error), code=error.code))
    except Unavailable as error:
        yield _sse(openai_error(503, LlmRuntimeError.kind, UNAVAILABLE[type(error)]))
    finally:
        await parts.aclose()
    yield END_OF_STREAM


def _sse(value: JSON) -> str:
    return f"data: {json.dumps(value)}\n\n"
