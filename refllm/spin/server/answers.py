"""An answer for whoever still waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

__all__ = ["ClientGoneError", "unless_gone"]

T = TypeVar("T")


class ClientGoneError(Exception):
    """Whoever asked has hung up."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to. Errors: `ClientGoneError`, the work cancelled, if nobody waits."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


async def _gone(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
