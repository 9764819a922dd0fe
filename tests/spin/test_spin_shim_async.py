"""Handlers that are coroutines, where an event loop runs already and where none does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import ModuleType

import pytest

from refllm.engine import LocalEngine
from refllm.spin.shim import Request, Response
from refllm.spin.shim.handlers import handle
from refllm.spin.shim.install import spin_sdk_backed_by
from refllm.spin.shim.sdk import Handler

GET = Request("GET", "/", {}, None)
WHO: ContextVar[str] = ContextVar("WHO", default="no caller")

Answer = Callable[[Request], Awaitable[Response]]


def module_of(answer: Answer) -> ModuleType:
    """A module as spin-sdk 5 has a handler in it."""

    class HttpHandler(Handler):
        async def handle_request(self, request: Request) -> Response:
            return await answer(request)

    module = ModuleType("app")
    vars(module)["HttpHandler"] = HttpHandler
    return module


def handled_without_a_loop(answer: Answer) -> Response:
    with spin_sdk_backed_by(LocalEngine()):
        return handle(module_of(answer), GET)


def handled_in_a_loop(answer: Answer) -> Response:
    async def main() -> Response:
        return handled_without_a_loop(answer)

    return asyncio.run(main())


pytestmark = pytest.mark.parametrize("handled", [handled_without_a_loop, handled_in_a_loop])


async def who(_: Request) -> Response:
    await asyncio.sleep(0)
    body = WHO.get().encode()
    WHO.set("the handler")
    return Response(200, {}, body)


async def failing(_: Request) -> Response:
    raise ZeroDivisionError("by hand")


def test_a_handler_is_awaited_with_its_callers_context(
    handled: Callable[[Answer], Response],
) -> None:
    token = WHO.set("the caller")
    try:
        assert handled(who).body == b"the caller"
        assert WHO.get() == "the caller"
    finally:
        WHO.reset(token)


def test_an_exception_of_a_handler_is_raised_in_the_test(
    handled: Callable[[Answer], Response],
) -> None:
    with pytest.raises(ZeroDivisionError, match="by hand"):
        handled(failing)
