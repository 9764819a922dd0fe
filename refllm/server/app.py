"""The application: routes, error handlers and middleware put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from refllm import __version__
from refllm.engine import LocalEngine
from refllm.errors import InvalidInput, LlmError
from refllm.server import routes_openai as openai_routes
from refllm.server import routes_spin as spin_routes
from refllm.server.errors import error_response, refusal
from refllm.server.limits import Limits
from refllm.server.metrics import Metrics
from refllm.server.middleware import (
    BodyMiddleware,
    CheckMiddleware,
    MetricsMiddleware,
    ShutdownMiddleware,
    check_connection,
    head_as_get,
    host_check,
    token_check,
)
from refllm.server.pages import docs_page, first_page
from refllm.server.service import ClientDisconnectedError, Service
from refllm.server.worker import Unavailable, Worker
from refllm.server.wrong_requests import what_is_wrong, wrong_method, wrong_path

__all__ = ["application", "routes"]

logger = logging.getLogger("refllm")

SECONDS_TO_END = 1.0  # for the worker, once no client waits for an answer
POLL_SECONDS = 0.01
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected
TOO_DEEP = "the body is nested too deeply; send a flatter one"
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class ErrorBody(BaseModel):
    """An error as OpenAI's routes answer it; Spin's routes answer with a JSON string."""

    error: dict[str, str | None]


def application(
    engine: LocalEngine,
    *,
    limits: Limits,
    token: str | None,
    hosts: Sequence[str] | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Return a server's whole application; the worker starts and ends with it.

    Args:
        engine: The engine that answers.
        limits: The limits of a request.
        token: The bearer token that every request must have; None for none.
        hosts: The names besides this machine's own that clients may use for the server; None
            allows every name, as for a server that other machines may use.
        origins: The origins of web pages that may read answers (CORS); "*" is all.
    """
    worker = Worker(engine, limits)
    metrics = Metrics(worker)
    app: ASGIApp = routes(Service(worker, metrics))
    app = BodyMiddleware(app, limits)
    if token is not None:
        app = CheckMiddleware(app, token_check(token))
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after"],
        )
    if hosts is not None:
        app = CheckMiddleware(app, host_check(hosts, origins))
    app = ShutdownMiddleware(CheckMiddleware(app, check_connection))
    return head_as_get(MetricsMiddleware(app, metrics.count_request))


def routes(service: Service) -> FastAPI:
    """Return the application's routes, and its handlers of errors."""

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        loop = asyncio.get_running_loop()
        until = loop.time() + SECONDS_TO_END
        while not (has_ended := service.worker.close(0)) and loop.time() < until:
            await asyncio.sleep(POLL_SECONDS)
        if not has_ended:
            logger.warning("refllm: the server ends before its worker has finished")

    app = FastAPI(
        title="refllm",
        version=__version__,
        lifespan=working,
        strict_content_type=False,  # Spin's client sends none
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(spin_routes.router_of(service), responses=_errors_of(str))
    app.include_router(openai_routes.router_of(service), responses=_errors_of(ErrorBody))
    _add_health(app, service)
    _add_pages(app)
    _add_errors(app, service)
    return app


def _errors_of(body: type) -> dict[int | str, dict[str, Any]]:
    """Return a route's answers besides 200, for the schema; FastAPI would add 422."""
    statuses = (400, 401, 403, 404, 408, 413, 500, 503)
    errors: dict[int | str, dict[str, Any]] = {status: {"model": body} for status in statuses}
    return {**errors, "4XX": {"description": "A request that cannot be answered"}}


def _add_health(app: FastAPI, service: Service) -> None:
    # Coroutines: all threads of the pool may be in use.
    @app.get("/healthz", response_class=PlainTextResponse, tags=["Health"])
    async def healthz() -> str:
        """Answer as long as the process runs."""
        return "ok\n"

    @app.get(
        "/readyz",
        response_class=PlainTextResponse,
        tags=["Health"],
        responses={503: {"description": "Not now", "content": {"text/plain": {}}}},
    )
    async def readyz() -> Response:
        """Answer 200 while the server accepts requests."""
        if service.worker.is_open:
            return PlainTextResponse("ok\n")
        why = "restarting\n" if service.worker.is_restarting else "closing\n"
        return PlainTextResponse(why, 503)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["Health"])
    async def metrics() -> Response:
        """Return counters in Prometheus's text format."""
        return Response(service.metrics.text(), media_type=PROMETHEUS_TEXT)


def _add_pages(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def root() -> str:
        """Return the list of routes."""
        return first_page()

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        """Return the tables of each route's keys."""
        return docs_page()


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(LlmError)
    @app.exception_handler(Unavailable)
    async def answer_with_error(request: Request, error: LlmError | Unavailable) -> Response:
        shown = service.for_clients(error) if isinstance(error, LlmError) else error
        return error_response(request.scope["path"], shown)

    @app.exception_handler(RequestValidationError)
    async def answer_with_what_is_wrong(
        request: Request, error: RequestValidationError
    ) -> Response:
        path = request.scope["path"]
        key, message = what_is_wrong(error, path)
        return refusal(path, 400, InvalidInput.kind, message, param=key)

    @app.exception_handler(HTTPException)
    async def answer_with_status(request: Request, error: HTTPException) -> Response:
        path, message = request.scope["path"], str(error.detail).lower()
        allowed = Headers(error.headers).get("allow")
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = wrong_path(path)
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and allowed is not None:
            message = wrong_method(request.method, path, allowed)
        response = refusal(path, error.status_code, InvalidInput.kind, message)
        response.headers.update(error.headers or {})
        if response.headers.get("allow") == "GET":
            response.headers["allow"] = "GET, HEAD"
        return response

    @app.exception_handler(RecursionError)
    async def answer_with_too_deep(request: Request, _: RecursionError) -> Response:
        return refusal(request.scope["path"], 400, InvalidInput.kind, TOO_DEEP)

    @app.exception_handler(ClientDisconnectedError)
    async def answer_disconnected(_: Request, __: ClientDisconnectedError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
